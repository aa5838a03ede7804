// The application where a program starts with main(): on a computer, on a bare Cortex-M.

#include "sky_app.h"

int main() {
  if (!sky_setup()) return 1;
  for (;;) sky_loop();
}
