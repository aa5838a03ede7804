// Stands in for the headers of TensorFlow Lite Micro that tflite/micro/sky_app.cc includes, with
// their signatures: TFLM's sources are on no package index. STUB_NAMESPACE is where its names are,
// which differs between its releases. In place of a network, a pixel's output is its channels' mean.
//
// As in TFLM, TF_LITE_STATIC_MEMORY changes the layout of TfLiteTensor. What stands for the library
// is always built with it. STUB_FAILS: after so many runs, each one fails.
#ifndef TFLM_STUB_H_
#define TFLM_STUB_H_

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "ddunet_model.h"

#define TFLITE_SCHEMA_VERSION (3)

#ifndef STUB_NAMESPACE
#define STUB_NAMESPACE tflite
#endif
#ifndef STUB_FAILS
#define STUB_FAILS 1000
#endif

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
enum TfLiteType { kTfLiteNoType = 0, kTfLiteInt8 = 9 };

union TfLitePtrUnion {
  int8_t* int8;
  uint8_t* uint8;
};

struct StaticTensor {
  TfLitePtrUnion data;
  size_t bytes;
  TfLiteType type;
  bool is_variable;
};

struct DynamicTensor {
  TfLiteType type;
  TfLitePtrUnion data;
  size_t bytes;
};

#ifdef TF_LITE_STATIC_MEMORY
using TfLiteTensor = StaticTensor;
#else
using TfLiteTensor = DynamicTensor;
#endif

inline void MicroPrintf(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  va_end(arguments);
}

namespace tflite {

struct Model {
  uint32_t version() const { return 3; }
  const unsigned char* content;
};

inline const Model* GetModel(const void* buffer) {
  static Model model;
  model.content = static_cast<const unsigned char*>(buffer);
  return &model;
}

}  // namespace tflite

namespace STUB_NAMESPACE {

using tflite::Model;

inline void InitializeTarget() {}

class MicroOpResolver {
 public:
  virtual ~MicroOpResolver() {}
};

template <unsigned int tOpCount>
class MicroMutableOpResolver : public MicroOpResolver {
 public:
#define STUB_ADD(name) \
  TfLiteStatus Add##name() { return ++count_ <= tOpCount ? kTfLiteOk : kTfLiteError; }
  STUB_ADD(Add)
  STUB_ADD(ArgMax)
  STUB_ADD(AveragePool2D)
  STUB_ADD(BatchMatMul)
  STUB_ADD(Cast)
  STUB_ADD(Concatenation)
  STUB_ADD(Conv2D)
  STUB_ADD(DepthwiseConv2D)
  STUB_ADD(Dequantize)
  STUB_ADD(EthosU)
  STUB_ADD(FullyConnected)
  STUB_ADD(GreaterEqual)
  STUB_ADD(Logistic)
  STUB_ADD(Mean)
  STUB_ADD(Mul)
  STUB_ADD(Pad)
  STUB_ADD(PadV2)
  STUB_ADD(Quantize)
  STUB_ADD(Relu)
  STUB_ADD(Relu6)
  STUB_ADD(Reshape)
  STUB_ADD(ResizeBilinear)
  STUB_ADD(Slice)
  STUB_ADD(Softmax)
  STUB_ADD(Split)
  STUB_ADD(StridedSlice)

 private:
  unsigned int count_ = 0;
};

class MicroInterpreter {
 public:
  MicroInterpreter(const Model* model, const MicroOpResolver&, uint8_t* arena, size_t size,
                   void* = nullptr, void* = nullptr, bool = false)
      : arena_(arena), fits_(model->content == ddunet_model && size >= 4 * kPixels) {}

  TfLiteStatus AllocateTensors() {
    input_ = {{reinterpret_cast<int8_t*>(arena_)}, 3 * kPixels, kTfLiteInt8, false};
    output_ = {{reinterpret_cast<int8_t*>(arena_ + 3 * kPixels)}, kPixels, kTfLiteInt8, false};
    return fits_ ? kTfLiteOk : kTfLiteError;
  }
  TfLiteTensor* input(size_t) { return reinterpret_cast<TfLiteTensor*>(&input_); }
  TfLiteTensor* output(size_t) { return reinterpret_cast<TfLiteTensor*>(&output_); }
  size_t arena_used_bytes() const { return 4 * kPixels; }
  TfLiteStatus Invoke() {
    if (++runs_ > STUB_FAILS) return kTfLiteError;
    for (size_t i = 0; i < kPixels; ++i) {
      const int8_t* pixel = input_.data.int8 + 3 * i;
      output_.data.int8[i] = static_cast<int8_t>((pixel[0] + pixel[1] + pixel[2]) / 3);
    }
    return kTfLiteOk;
  }

 private:
  static constexpr size_t kPixels = DDUNET_MODEL_HEIGHT * DDUNET_MODEL_WIDTH;
  uint8_t* arena_;
  bool fits_;
  int runs_ = 0;
  StaticTensor input_, output_;
};

}  // namespace STUB_NAMESPACE

#endif  // TFLM_STUB_H_
