// Convolutions of a few small images with few channels: stride 1, no padding, float32, single-threaded.
//
// A row of the output is a sum of shifted rows of the input. SIMD vectors run along the rows, and several output channels
// are summed at once to reuse each loaded vector. Inputs may have any strides; the output is contiguous.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <vector>

using torch::stable::Tensor;

namespace {

// As wide as the processor's vectors, with no more sums at once than fit into its registers; more would spill to memory.
// (With 16 lanes on a Zen 3, whose vectors have 8, a step took three times as long.)
#ifdef __AVX512F__
constexpr int LANES = 16, WEIGHT_GRAD_OUTPUTS = 4;
#else
constexpr int LANES = 8, WEIGHT_GRAD_OUTPUTS = 2;
#endif
typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));

Vec load(const float* from) {
  Vec value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

float sum(Vec value) {
  float parts[LANES];
  std::memcpy(parts, &value, sizeof(value));
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
  return parts[0];
}

// A zero-padded copy of images [n, c, h, w] whose rows are `stride` floats long.
struct PaddedImages {
  int64_t n, c, h, w, stride;
  std::vector<float> data;
  float* row(int64_t i, int64_t j, int64_t y) { return data.data() + ((i * c + j) * h + y) * stride; }
};

// Pads a tensor with `above` rows of zeros above and below, `left` columns left and right, and rows of at least `width`.
void pad(PaddedImages& padded, const Tensor& tensor, int64_t above, int64_t left, int64_t width) {
  const int64_t h = tensor.size(2), w = tensor.size(3);
  padded.n = tensor.size(0), padded.c = tensor.size(1), padded.h = h + 2 * above, padded.w = w + 2 * left;
  padded.stride = std::max(padded.w, width);
  padded.data.assign(padded.n * padded.c * padded.h * padded.stride + LANES, 0.0f);
  const float* from = static_cast<const float*>(tensor.data_ptr());
  const int64_t sn = tensor.stride(0), sc = tensor.stride(1), sy = tensor.stride(2), sx = tensor.stride(3);
  for (int64_t i = 0; i < padded.n; ++i)
    for (int64_t j = 0; j < padded.c; ++j)
      for (int64_t y = 0; y < h; ++y) {
        float* to = padded.row(i, j, y + above) + left;
        const float* source = from + i * sn + j * sc + y * sy;
        if (sx == 1) std::memcpy(to, source, w * sizeof(float));
        else for (int64_t x = 0; x < w; ++x) to[x] = source[x * sx];
      }
}

// Computes OUT_CHANNELS output channels from o0 on: out[y, x] = sum over j, ky, kx of in[j, y + ky, x + kx] * weight.
template <int OUT_CHANNELS>
void conv_forward(PaddedImages& in, const float* weights, float* out, int64_t o0, int64_t out_channels, int64_t kh,
                  int64_t kw) {
  const int64_t h = in.h - kh + 1, w = in.w - kw + 1;
  for (int64_t i = 0; i < in.n; ++i)
    for (int64_t y = 0; y < h; ++y)
      for (int64_t x = 0; x < w; x += LANES) {
        const int64_t start = std::max<int64_t>(0, std::min(x, w - LANES));
        Vec sums[OUT_CHANNELS] = {};
        const float* weight = weights;
        for (int64_t j = 0; j < in.c; ++j)
          for (int64_t ky = 0; ky < kh; ++ky) {
            const float* row = in.row(i, j, y + ky) + start;
            for (int64_t kx = 0; kx < kw; ++kx, weight += OUT_CHANNELS) {
              const Vec pixels = load(row + kx);
              for (int o = 0; o < OUT_CHANNELS; ++o) sums[o] += weight[o] * pixels;
            }
          }
        const int64_t count = std::min<int64_t>(LANES, w - start);
        for (int o = 0; o < OUT_CHANNELS; ++o)
          std::memcpy(out + ((i * out_channels + o0 + o) * h + y) * w + start, &sums[o], count * sizeof(float));
      }
}

// Computes all output channels; `weight(o, j, ky, kx)` returns an element of the weights.
template <class Weight>
void conv_forward_all(PaddedImages& in, int64_t out_channels, int64_t kh, int64_t kw, float* out, Weight weight) {
  thread_local std::vector<float> packed;
  for (int64_t o0 = 0; o0 < out_channels;) {
    const int64_t block = std::min<int64_t>(8, out_channels - o0);
    packed.resize(in.c * kh * kw * block);
    float* to = packed.data();
    for (int64_t j = 0; j < in.c; ++j)
      for (int64_t ky = 0; ky < kh; ++ky)
        for (int64_t kx = 0; kx < kw; ++kx)
          for (int64_t o = 0; o < block; ++o) *to++ = weight(o0 + o, j, ky, kx);
    switch (block) {
#define CASE(B) case B: conv_forward<B>(in, packed.data(), out, o0, out_channels, kh, kw); break;
      CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
    }
    o0 += block;
  }
}

Tensor forward(Tensor x, Tensor w) {
  const int64_t out_channels = w.size(0), kh = w.size(2), kw = w.size(3);
  thread_local PaddedImages in;
  pad(in, x, 0, 0, LANES + kw - 1);
  Tensor out = torch::stable::new_empty(x, {x.size(0), out_channels, in.h - kh + 1, in.w - kw + 1});
  const float* from = static_cast<const float*>(w.data_ptr());
  const int64_t s0 = w.stride(0), s1 = w.stride(1), s2 = w.stride(2), s3 = w.stride(3);
  conv_forward_all(in, out_channels, kh, kw, static_cast<float*>(out.data_ptr()),
      [=](int64_t o, int64_t j, int64_t ky, int64_t kx) { return from[o * s0 + j * s1 + ky * s2 + kx * s3]; });
  return out;
}

// The same convolution over the zero-padded gradient, with flipped weights and swapped channels.
Tensor input_gradient(Tensor g, Tensor w) {
  const int64_t out_channels = w.size(1), kh = w.size(2), kw = w.size(3);
  thread_local PaddedImages in;
  pad(in, g, kh - 1, kw - 1, LANES + kw - 1);
  Tensor out = torch::stable::new_empty(g, {g.size(0), out_channels, in.h - kh + 1, in.w - kw + 1});
  const float* from = static_cast<const float*>(w.data_ptr());
  const int64_t s0 = w.stride(0), s1 = w.stride(1), s2 = w.stride(2), s3 = w.stride(3);
  conv_forward_all(in, out_channels, kh, kw, static_cast<float*>(out.data_ptr()),
      [=](int64_t o, int64_t j, int64_t ky, int64_t kx) {
        return from[j * s0 + o * s1 + (kh - 1 - ky) * s2 + (kw - 1 - kx) * s3];
      });
  return out;
}

// Weight gradient of OUT_CHANNELS output channels: sums of shifted input times gradient over images and rows.
template <int OUT_CHANNELS, int KW>
void conv_weight_grad(PaddedImages& x, PaddedImages& g, int64_t o0, int64_t kh, float* out) {
  for (int64_t j = 0; j < x.c; ++j)
    for (int64_t ky = 0; ky < kh; ++ky) {
      Vec sums[OUT_CHANNELS][KW] = {};
      for (int64_t i = 0; i < x.n; ++i)
        for (int64_t y = 0; y < g.h; ++y)
          for (int64_t start = 0; start < g.w; start += LANES) {
            const float* row = x.row(i, j, y + ky) + start;
            Vec pixels[KW];
            for (int kx = 0; kx < KW; ++kx) pixels[kx] = load(row + kx);
            for (int o = 0; o < OUT_CHANNELS; ++o) {
              const Vec gradient = load(g.row(i, o0 + o, y) + start);
              for (int kx = 0; kx < KW; ++kx) sums[o][kx] += gradient * pixels[kx];
            }
          }
      for (int o = 0; o < OUT_CHANNELS; ++o)
        for (int kx = 0; kx < KW; ++kx) out[(((o0 + o) * x.c + j) * kh + ky) * KW + kx] = sum(sums[o][kx]);
    }
}

template <int KW>
void conv_weight_grad_all(PaddedImages& x, PaddedImages& g, int64_t kh, float* out) {
  int64_t o = 0;
  for (; o + WEIGHT_GRAD_OUTPUTS <= g.c; o += WEIGHT_GRAD_OUTPUTS)
    conv_weight_grad<WEIGHT_GRAD_OUTPUTS, KW>(x, g, o, kh, out);
  for (; o < g.c; ++o) conv_weight_grad<1, KW>(x, g, o, kh, out);
}

Tensor weight_gradient(Tensor x, Tensor g) {
  const int64_t kh = x.size(2) - g.size(2) + 1, kw = x.size(3) - g.size(3) + 1;
  thread_local PaddedImages images, gradients;
  const int64_t width = (g.size(3) + LANES - 1) / LANES * LANES;
  pad(images, x, 0, 0, width + kw - 1);
  pad(gradients, g, 0, 0, width);
  Tensor out = torch::stable::new_empty(x, {g.size(1), x.size(1), kh, kw});
  float* to = static_cast<float*>(out.data_ptr());
  switch (kw) {
#define CASE(K) case K: conv_weight_grad_all<K>(images, gradients, kh, to); break;
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)
#undef CASE
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY(small_convolution, library) {
  library.def("forward(Tensor x, Tensor w) -> Tensor");
  library.def("input_gradient(Tensor g, Tensor w) -> Tensor");
  library.def("weight_gradient(Tensor x, Tensor g) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(small_convolution, CPU, library) {
  library.impl("forward", TORCH_BOX(&forward));
  library.impl("input_gradient", TORCH_BOX(&input_gradient));
  library.impl("weight_gradient", TORCH_BOX(&weight_gradient));
}
