// What the CPU kernels are made of: products in register tiles, e^x and ln x in 16 lanes.
//
// One rule makes everything else exact: each output element is one chain of fused multiply-adds
// over k = 0, 1, 2, … in that order. Vectors run across outputs, never across k, so the bits of a
// row depend neither on how many rows come with it, nor on the width of the vectors, nor on the
// number of threads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define EXPORT(name) extern "C" __attribute__((visibility("default"))) PASTE(name, ISA)

namespace {

#if defined(__AVX512F__)
constexpr int W = 16, MAX_ROWS = 12;
#else
constexpr int W = 8, MAX_ROWS = 6;
#endif
constexpr int PANEL = 32;

typedef float vec __attribute__((vector_size(W * 4), aligned(4)));
typedef float lanes __attribute__((vector_size(64), aligned(4)));  // 16 fixed lanes, any ISA
typedef int32_t ilanes __attribute__((vector_size(64), aligned(4)));

inline vec broadcast(float a) { return vec{} + a; }

// out[MR][NV * W] (+)= x[MR][depth] · panel[depth][NV * W]; the chain over k starts from `out`
// when `carry` is set, so that a sum may be continued from memory without a change of bits.
// TURNED: x is [depth][ldx], and its transpose is meant.
template <int MR, int NV, bool TURNED>
inline void tile(const float* x, long ldx, long depth, const float* panel, long ldp, float* out,
                 long ldo, bool carry) {
  vec acc[MR][NV];
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v)
      acc[r][v] = carry ? *(const vec*)(out + r * ldo + v * W) : vec{};
  for (long k = 0; k < depth; ++k) {
    vec b[NV];
    for (int v = 0; v < NV; ++v) b[v] = *(const vec*)(panel + k * ldp + v * W);
    for (int r = 0; r < MR; ++r) {
      const vec a = broadcast(TURNED ? x[k * ldx + r] : x[r * ldx + k]);
      for (int v = 0; v < NV; ++v) acc[r][v] += a * b[v];
    }
  }
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) *(vec*)(out + r * ldo + v * W) = acc[r][v];
}

template <int NV, bool TURNED, int MR = MAX_ROWS>
inline void tile_rows(long rows, const float* x, long ldx, long depth, const float* panel, long ldp,
                      float* out, long ldo, bool carry) {
  if constexpr (MR == 1) {
    tile<1, NV, TURNED>(x, ldx, depth, panel, ldp, out, ldo, carry);
  } else {
    if (rows >= MR)
      tile<MR, NV, TURNED>(x, ldx, depth, panel, ldp, out, ldo, carry);
    else
      tile_rows<NV, TURNED, MR - 1>(rows, x, ldx, depth, panel, ldp, out, ldo, carry);
  }
}

// The same for any number of rows and columns: whole vectors first, single columns last.
template <bool TURNED = false>
void product(long rows, const float* x, long ldx, long depth, const float* panel, long ldp,
             long columns, float* out, long ldo, bool carry) {
  for (long r = 0; r < rows; r += MAX_ROWS) {
    const long take = std::min<long>(MAX_ROWS, rows - r);
    const float* xr = x + (TURNED ? r : r * ldx);
    float* outr = out + r * ldo;
    long c = 0;
    if (take <= 2)  // few rows: wider tiles keep the multiply-adds of one row independent
      for (; c + 4 * W <= columns; c += 4 * W)
        tile_rows<4, TURNED, 2>(take, xr, ldx, depth, panel + c, ldp, outr + c, ldo, carry);
    for (; c + 2 * W <= columns; c += 2 * W)
      tile_rows<2, TURNED>(take, xr, ldx, depth, panel + c, ldp, outr + c, ldo, carry);
    for (; c + W <= columns; c += W)
      tile_rows<1, TURNED>(take, xr, ldx, depth, panel + c, ldp, outr + c, ldo, carry);
    for (; c < columns; ++c)
      for (long i = 0; i < take; ++i) {
        float acc = carry ? outr[i * ldo + c] : 0.0f;
        for (long k = 0; k < depth; ++k)
          acc = __builtin_fmaf(TURNED ? xr[k * ldx + i] : xr[i * ldx + k], panel[k * ldp + c], acc);
        outr[i * ldo + c] = acc;
      }
  }
}

// e^x in 16 lanes: Cephes' expf (range reduction by ln 2, polynomial of degree 5).
inline lanes exp16(lanes x) {
  const lanes high = lanes{} + 88.3762626647950f, low = lanes{} - 87.3365478515625f;
  const ilanes under = x < low;
  x = x > high ? high : x;
  x = x < low ? low : x;
  lanes n = x * 1.44269504088896341f + 0.5f;
  ilanes whole = __builtin_convertvector(n, ilanes);
  lanes floor = __builtin_convertvector(whole, lanes);
  whole = floor > n ? whole - 1 : whole;
  n = __builtin_convertvector(whole, lanes);
  x = x - n * 0.693359375f;
  x = x + n * 2.12194440e-4f;
  lanes y = lanes{} + 1.9875691500E-4f;
  y = y * x + 1.3981999507E-3f;
  y = y * x + 8.3334519073E-3f;
  y = y * x + 4.1665795894E-2f;
  y = y * x + 1.6666665459E-1f;
  y = y * x + 5.0000001201E-1f;
  y = y * (x * x) + x + 1.0f;
  const ilanes power = (whole + 127) << 23;
  lanes scale;
  std::memcpy(&scale, &power, sizeof scale);
  y = y * scale;
  return under ? lanes{} : y;
}

// ln x in 16 lanes, for positive normal x: Cephes' logf (relative error near 1 stays small).
inline lanes log16(lanes x) {
  ilanes bits;
  std::memcpy(&bits, &x, sizeof bits);
  ilanes power = ((bits >> 23) & 0xff) - 126;
  bits = (bits & 0x007fffff) | 0x3f000000;
  lanes m;
  std::memcpy(&m, &bits, sizeof m);
  const ilanes small = m < 0.707106781186547524f;
  power = small ? power - 1 : power;
  m = small ? m + m - 1.0f : m - 1.0f;
  const lanes n = __builtin_convertvector(power, lanes), z = m * m;
  lanes y = lanes{} + 7.0376836292E-2f;
  y = y * m - 1.1514610310E-1f;
  y = y * m + 1.1676998740E-1f;
  y = y * m - 1.2420140846E-1f;
  y = y * m + 1.4249322787E-1f;
  y = y * m - 1.6668057665E-1f;
  y = y * m + 2.0000714765E-1f;
  y = y * m - 2.4999993993E-1f;
  y = y * m + 3.3333331174E-1f;
  y = y * m * z - n * 2.12194440e-4f - 0.5f * z;
  return m + y + n * 0.693359375f;
}

inline lanes load16(const float* p, long count) {
  if (count >= 16) return *(const lanes*)p;
  lanes x = {};
  for (long i = 0; i < count; ++i) x[i] = p[i];
  return x;
}

inline void store16(float* p, lanes x, long count) {
  if (count >= 16) {
    *(lanes*)p = x;
    return;
  }
  for (long i = 0; i < count; ++i) p[i] = x[i];
}

// Sum of 16 lanes in a fixed tree.
inline float total(lanes x) {
  float s[16];
  std::memcpy(s, &x, sizeof s);
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; ++i) s[i] += s[i + step];
  return s[0];
}

}  // namespace
