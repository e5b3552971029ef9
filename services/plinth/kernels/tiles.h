// What the CPU kernels are made of: products in register tiles.
//
// One rule makes everything else exact: each output element is one chain of fused multiply-adds
// over k = 0, 1, 2, … in that order. Vectors run across outputs, never across k, so the bits of a
// row depend neither on how many rows come with it, nor on the width of the vectors, nor on the
// number of threads, nor on the processor (`fma.h`).
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "elementary.h"
#include "fma.h"

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define EXPORT(name) extern "C" __attribute__((visibility("default"))) PASTE(name, ISA)

namespace {

// Rows of a tile: as many as the registers hold beside the panel.
constexpr int MAX_ROWS = W == 16 ? 12 : W == 8 ? 6 : 2;
constexpr int PANEL = 32;

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
      for (int v = 0; v < NV; ++v) acc[r][v] = fma(a, b[v], acc[r][v]);
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
          acc = fma(TURNED ? xr[k * ldx + i] : xr[i * ldx + k], panel[k * ldp + c], acc);
        outr[i * ldo + c] = acc;
      }
  }
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
