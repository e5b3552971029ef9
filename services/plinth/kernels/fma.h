// a · b + c, rounded once, on every processor: what makes the bits of all kernels the same on all.
//
// The compiler may fuse nothing by itself (-ffp-contract=off), so what is fused is what says `fma`.
// Where the processor has no such instruction, it is computed: the product of two floats is exact
// in double; the sum is rounded to odd there (Boldo and Melquiond 2008), from where rounding to
// float gives what one rounding would have given, subnormals included.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__x86_64__) && !defined(__FMA__)
constexpr int W = 4;
#else
constexpr int W = 8;
#endif

typedef float vec __attribute__((vector_size(W * 4), aligned(4)));
typedef float lanes __attribute__((vector_size(64), aligned(4)));  // 16 fixed lanes, any processor
typedef int32_t ilanes __attribute__((vector_size(64), aligned(4)));

#if defined(__AVX512F__)

inline vec fma(vec a, vec b, vec c) {
  return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

#elif defined(__x86_64__) && defined(__FMA__)

inline vec fma(vec a, vec b, vec c) {
  return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

#elif defined(__x86_64__)

// The double nearest to a · b + c whose last bit is 1, unless a double holds it exactly.
inline __m128d to_odd(__m128d a, __m128d b, __m128d c) {
  const __m128d product = a * b, sum = product + c, back = sum - product;
  const __m128d error = (product - (sum - back)) + (c - back);  // sum + error, exactly (Knuth)
  const __m128d none = _mm_setzero_pd();
  const __m128i inexact = _mm_castpd_si128(
      _mm_and_pd(_mm_cmpneq_pd(error, none), _mm_cmpord_pd(error, error)));  // infinities are exact
  const __m128i bits = _mm_castpd_si128(sum);
  const __m128i step = _mm_and_si128(_mm_andnot_si128(bits, _mm_set1_epi64x(1)), inexact);
  const __m128i inward = _mm_sub_epi64(
      _mm_setzero_si128(), _mm_srli_epi64(_mm_castpd_si128(_mm_xor_pd(error, sum)), 63));
  const __m128i change = _mm_sub_epi64(_mm_xor_si128(step, inward), inward);
  return _mm_castsi128_pd(_mm_add_epi64(bits, change));
}

inline vec fma(vec a, vec b, vec c) {
  const __m128 x = (__m128)a, y = (__m128)b, z = (__m128)c;
  const __m128d low = to_odd(_mm_cvtps_pd(x), _mm_cvtps_pd(y), _mm_cvtps_pd(z));
  const __m128d high = to_odd(_mm_cvtps_pd(_mm_movehl_ps(x, x)), _mm_cvtps_pd(_mm_movehl_ps(y, y)),
                              _mm_cvtps_pd(_mm_movehl_ps(z, z)));
  return (vec)_mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
}
inline float fma(float a, float b, float c) {
  return _mm_cvtss_f32(_mm_cvtpd_ps(to_odd(_mm_set_sd(a), _mm_set_sd(b), _mm_set_sd(c))));
}

#else  // the compiler knows the instruction (__FP_FAST_FMAF, as on aarch64), or the C library does it

inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline vec fma(vec a, vec b, vec c) {
  vec out;
  for (int i = 0; i < W; ++i) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return out;
}

#endif

#if !defined(__AVX512F__)
inline lanes fma(lanes a, lanes b, lanes c) {
  vec x[16 / W], y[16 / W], z[16 / W];
  std::memcpy(x, &a, sizeof a);
  std::memcpy(y, &b, sizeof b);
  std::memcpy(z, &c, sizeof c);
  for (int i = 0; i < 16 / W; ++i) z[i] = fma(x[i], y[i], z[i]);
  lanes out;
  std::memcpy(&out, z, sizeof out);
  return out;
}
#endif

}  // namespace
