"""`python tflite/convert.py MODEL ...` is `ddunet convert MODEL ...`; `--help` has the options."""

import sys

from ddunet_keras.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
