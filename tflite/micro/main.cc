// A sky camera on a microcontroller: frame -> network -> mask and cloud cover, again and again.
//
// ddunet_model.h and .c come from `ddunet convert ... --target tflm --c-array .`; the board's part
// is board.h. Where a frame is larger than the network's input, or RGB565, capture it into memory of
// its own and call sky_input_rgb888 or sky_input_rgb565 with the window to look at.

#include <cstdint>

#include "board.h"
#include "ddunet_model.h"
#include "sky.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

// TFLM keeps its names in tflite, its newest sources (October 2026) in tflite::micro
namespace tflite {
namespace micro {}
}  // namespace tflite
using namespace tflite;
using namespace tflite::micro;

namespace {

constexpr int kHeight = DDUNET_MODEL_HEIGHT;
constexpr int kWidth = DDUNET_MODEL_WIDTH;

// On a board with external memory, such as an ESP32-S3's PSRAM, put these where they fit.
alignas(16) uint8_t arena[DDUNET_MODEL_ARENA_BYTES];
uint8_t mask[kHeight * kWidth];

// Where the camera sees sky: kHeight * kWidth bytes, 0 for trees, houses and the rim of a lens.
// nullptr: everywhere.
const uint8_t* const valid = nullptr;

int Fail(const char* what) {
  MicroPrintf("sky: %s failed", what);
  return 1;
}

}  // namespace

int main() {
  InitializeTarget();
  const Model* model = GetModel(ddunet_model);
  if (model->version() != TFLITE_SCHEMA_VERSION) return Fail("reading the model");

  static MicroMutableOpResolver<DDUNET_MODEL_OPERATORS> resolver;
  if (!DDUNET_MODEL_REGISTER(resolver)) return Fail("registering the operators");

  static MicroInterpreter interpreter(model, resolver, arena, sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) return Fail("fitting into the arena");

  for (;;) {
    // the arena is used anew by every run, so the input is filled anew for each
    int8_t* input = interpreter.input(0)->data.int8;
    uint8_t* frame = reinterpret_cast<uint8_t*>(input);
    if (!board_capture(frame, kWidth, kHeight)) return 0;
    sky_input_rgb888(frame, kWidth, 0, 0, kWidth, kHeight, input);

    const sky_quality quality = sky_check(input, sizeof(mask), valid);
    if (quality != SKY_USABLE) {
      board_cannot_tell(sky_quality_name(quality));
      continue;
    }
    sky_blacken(input, sizeof(mask), valid);
    if (interpreter.Invoke() != kTfLiteOk) return Fail("running the model");

    sky_cover cover;
    sky_segment(interpreter.output(0)->data.int8, sizeof(mask), DDUNET_MODEL_CHANNELS,
                DDUNET_MODEL_THRESHOLD, valid, mask, &cover);
    board_show(mask, kWidth, kHeight, &cover);
  }
}
