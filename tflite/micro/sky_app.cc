// A sky camera on a microcontroller: frame -> network -> mask and cloud cover. C++17.
//
// ddunet_model.h and .c come from `ddunet inspect FILE --c-array FOLDER`, or from `ddunet convert`;
// ddunet_horizon.h, which may be missing, from `ddunet horizon`. What the board does is in board.h.
//
// Compiler options: -DTF_LITE_STATIC_MEMORY, as TFLM itself is built, and where needed
//   -DSKY_ARENA_BYTES=300000       for kernels that need memory of their own (CMSIS-NN, ESP-NN)
//   -DSKY_ARENA_ATTRIBUTE=...      where the arena is: an attribute, such as ESP-IDF's
//                                  EXT_RAM_BSS_ATTR, or __attribute__((section(".bss.axisram")))

#include "sky_app.h"

#include <cstddef>
#include <cstdint>

#include "board.h"
#include "ddunet_model.h"
#include "sky.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

#if __has_include("ddunet_horizon.h")
#include "ddunet_horizon.h"
#define SKY_VALID ddunet_horizon
#define SKY_HORIZON "with a horizon"
static_assert(DDUNET_HORIZON_WIDTH == DDUNET_MODEL_WIDTH &&
                  DDUNET_HORIZON_HEIGHT == DDUNET_MODEL_HEIGHT,
              "ddunet_horizon.h is for another size: write it anew with --size of the network");
#else
#define SKY_VALID nullptr
#define SKY_HORIZON "no horizon"
#endif

#ifndef SKY_ARENA_BYTES
#define SKY_ARENA_BYTES DDUNET_MODEL_ARENA_BYTES
#endif
#ifndef SKY_ARENA_ATTRIBUTE
#define SKY_ARENA_ATTRIBUTE
#endif

// TFLM keeps its names in tflite, its newest sources (October 2026) in tflite::micro
namespace tflite {
namespace micro {}
}  // namespace tflite
using namespace tflite;
using namespace tflite::micro;

namespace {

constexpr size_t kHeight = DDUNET_MODEL_HEIGHT;
constexpr size_t kWidth = DDUNET_MODEL_WIDTH;
constexpr size_t kPixels = kHeight * kWidth;
constexpr size_t kChannels = DDUNET_MODEL_CHANNELS;

alignas(16) SKY_ARENA_ATTRIBUTE uint8_t arena[SKY_ARENA_BYTES];
uint32_t row_sums[3 * kWidth];
MicroInterpreter* interpreter = nullptr;

int Fail(const char* what) {
  MicroPrintf("sky: %s", what);
  return 0;
}

bool IsInt8(const TfLiteTensor* tensor, size_t bytes) {
  return tensor != nullptr && tensor->type == kTfLiteInt8 && tensor->bytes == bytes;
}

int CannotTell(const char* reason) {
  board_cannot_tell(reason);
  return 0;
}

}  // namespace

int sky_setup(void) {
  InitializeTarget();
  const Model* model = GetModel(ddunet_model);
  if (model->version() != TFLITE_SCHEMA_VERSION) return Fail("the model has another schema version");

  static MicroMutableOpResolver<DDUNET_MODEL_OPERATORS> resolver;
  if (!DDUNET_MODEL_REGISTER(resolver)) return Fail("an operator could not be registered");

  static MicroInterpreter the_interpreter(model, resolver, arena, sizeof(arena));
  if (the_interpreter.AllocateTensors() != kTfLiteOk) {
    return Fail("the arena is too small, see SKY_ARENA_BYTES, or TFLM lacks an operator version");
  }
  // a TfLiteTensor has another layout with TF_LITE_STATIC_MEMORY than without
  if (!IsInt8(the_interpreter.input(0), 3 * kPixels) ||
      !IsInt8(the_interpreter.output(0), kChannels * kPixels)) {
    return Fail("input and output are not int8 of the right size; is TF_LITE_STATIC_MEMORY defined?");
  }
  interpreter = &the_interpreter;
  MicroPrintf("sky: %d x %d pixels, %d of %d bytes of the arena in use, " SKY_HORIZON,
              static_cast<int>(kWidth), static_cast<int>(kHeight),
              static_cast<int>(interpreter->arena_used_bytes()), static_cast<int>(sizeof(arena)));
  return 1;
}

int sky_loop(void) {
  if (interpreter == nullptr) return CannotTell("not set up");
  // the arena is used anew by every run, so the input is filled anew for each
  int8_t* values = interpreter->input(0)->data.int8;
  sky_input input = {};
  input.values = values;
  input.width = kWidth;
  input.height = kHeight;
  input.sums = row_sums;
  if (!board_capture(&input) || !sky_input_complete(&input)) return CannotTell("no frame");

  const uint8_t* const valid = SKY_VALID;
  const sky_quality quality = sky_check(values, kPixels, valid);
  if (quality != SKY_USABLE) return CannotTell(sky_quality_name(quality));
  sky_blacken(values, kPixels, valid);
  if (interpreter->Invoke() != kTfLiteOk) return CannotTell("the network failed");

  // the mask takes the output's place
  int8_t* output = interpreter->output(0)->data.int8;
  uint8_t* mask = reinterpret_cast<uint8_t*>(output);
  sky_cover cover;
  sky_segment(output, kPixels, kChannels, DDUNET_MODEL_THRESHOLD, valid, mask, &cover);
  board_show(mask, kWidth, kHeight, &cover);
  return 1;
}
