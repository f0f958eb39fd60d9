// mask_logits: the part that is not a product, in place over `count` logits.
//   sigmoid_in_place           x <- s = sigmoid(x)
//   sigmoid_backward_in_place  x <- grad s (1 - s), as e / (1 + e)^2 with e = exp(-|x|): no
//                              cancellation where s is near 1

#include "cpu/mask_logits.hpp"

#include <algorithm>

#include "core/vector_math.hpp"
#include "cpu/parallel.hpp"

namespace maskformer::cpu {
namespace {

constexpr int64_t kPiece = 16384;  // logits that one thread takes at a time

// body(begin, end) for pieces of [0, count).
template <typename Body>
void in_pieces(int64_t count, int threads, const Body& body) {
  parallel_for((count + kPiece - 1) / kPiece, threads, [&](int64_t piece, int) {
    body(piece * kPiece, std::min((piece + 1) * kPiece, count));
  });
}

}  // namespace

template <InstructionSet Set>
void sigmoid_in_place(float* x, int64_t count, int threads) {
  in_pieces(count, threads, [=](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) x[i] = sigmoid(x[i]);
  });
}

template <InstructionSet Set>
void sigmoid_backward_in_place(float* x, const float* grad, int64_t count, int threads) {
  in_pieces(count, threads, [=](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const float e = exp_of_negative(-magnitude(x[i])), r = 1.0f / (1.0f + e);
      x[i] = grad[i] * (e * r * r);
    }
  });
}

template void sigmoid_in_place<InstructionSet::MASKFORMER_SET>(float*, int64_t, int);
template void sigmoid_backward_in_place<InstructionSet::MASKFORMER_SET>(float*, const float*,
                                                                        int64_t, int);

}  // namespace maskformer::cpu
