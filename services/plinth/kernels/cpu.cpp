// The CPU kernels. Compiled once per instruction set (ISA names the suffix); plain C in, plain C out.
//
// One rule makes everything else exact: each output element is one chain of fused multiply-adds
// over k = 0, 1, 2, … in that order. Vectors run across outputs, never across k, so the bits of a
// row depend neither on how many rows come with it, nor on the width of the vectors, nor on the
// number of threads. Attention keeps the same rule: scores over the head's features in order,
// values over positions in order, the softmax's sum in 16 fixed lanes.
//
// Layouts (row-major, fp32):
//   packed weights  [ceil(out/32)][in][32], zero-padded
//   keys            [block][kv_head][head_dim][block_size]   (positions run across a vector)
//   values          [block][kv_head][block_size][head_dim]

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
template <int MR, int NV>
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
      const vec a = broadcast(x[r * ldx + k]);
      for (int v = 0; v < NV; ++v) acc[r][v] += a * b[v];
    }
  }
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) *(vec*)(out + r * ldo + v * W) = acc[r][v];
}

template <int NV, int MR = MAX_ROWS>
inline void tile_rows(long rows, const float* x, long ldx, long depth, const float* panel, long ldp,
                      float* out, long ldo, bool carry) {
  if constexpr (MR == 1) {
    tile<1, NV>(x, ldx, depth, panel, ldp, out, ldo, carry);
  } else {
    if (rows >= MR)
      tile<MR, NV>(x, ldx, depth, panel, ldp, out, ldo, carry);
    else
      tile_rows<NV, MR - 1>(rows, x, ldx, depth, panel, ldp, out, ldo, carry);
  }
}

// The same for any number of rows and columns: whole vectors first, single columns last.
void product(long rows, const float* x, long ldx, long depth, const float* panel, long ldp,
             long columns, float* out, long ldo, bool carry) {
  for (long r = 0; r < rows; r += MAX_ROWS) {
    const long take = std::min<long>(MAX_ROWS, rows - r);
    const float* xr = x + r * ldx;
    float* outr = out + r * ldo;
    long c = 0;
    if (take <= 2)  // few rows: wider tiles keep the multiply-adds of one row independent
      for (; c + 4 * W <= columns; c += 4 * W)
        tile_rows<4, 2>(take, xr, ldx, depth, panel + c, ldp, outr + c, ldo, carry);
    for (; c + 2 * W <= columns; c += 2 * W)
      tile_rows<2>(take, xr, ldx, depth, panel + c, ldp, outr + c, ldo, carry);
    for (; c + W <= columns; c += W)
      tile_rows<1>(take, xr, ldx, depth, panel + c, ldp, outr + c, ldo, carry);
    for (; c < columns; ++c)
      for (long i = 0; i < take; ++i) {
        float acc = carry ? outr[i * ldo + c] : 0.0f;
        for (long k = 0; k < depth; ++k)
          acc = __builtin_fmaf(xr[i * ldx + k], panel[k * ldp + c], acc);
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

// weight [out][in] → rows `first` … of a packed buffer whose panels hold 32 outputs each.
EXPORT(void pack)(const float* weight, long outputs, long inputs, float* packed, long first) {
  for (long o = 0; o < outputs; ++o) {
    const long row = first + o;
    float* panel = packed + (row / PANEL) * inputs * PANEL + row % PANEL;
    for (long k = 0; k < inputs; ++k) panel[k * PANEL] = weight[o * inputs + k];
  }
}

// out[rows][outputs] = x[rows][inputs] · packedᵀ (+ bias[outputs]) (+ residual[rows][outputs])
EXPORT(void linear)(const float* x, long ldx, long rows, long inputs, const float* packed,
                    const float* bias, const float* residual, long ldr, float* out, long ldo,
                    long outputs, int threads) {
  const long panels = (outputs + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long p = 0; p < panels; ++p) {
    const float* panel = packed + p * inputs * PANEL;
    const long width = std::min<long>(PANEL, outputs - p * PANEL);
    float* target = out + p * PANEL;
    if (width == PANEL) {
      product(rows, x, ldx, inputs, panel, PANEL, PANEL, target, ldo, false);
    } else {
      std::vector<float> whole(rows * PANEL);
      product(rows, x, ldx, inputs, panel, PANEL, PANEL, whole.data(), PANEL, false);
      for (long r = 0; r < rows; ++r)
        std::memcpy(target + r * ldo, whole.data() + r * PANEL, width * sizeof(float));
    }
    for (long r = 0; r < rows && (bias || residual); ++r)
      for (long c = 0; c < width; ++c) {
        float value = target[r * ldo + c];
        if (bias) value += bias[p * PANEL + c];
        if (residual) value += residual[r * ldr + p * PANEL + c];
        target[r * ldo + c] = value;
      }
  }
}

// RMSNorm (bias null) or LayerNorm over each row.
EXPORT(void norm)(const float* x, long ldx, long rows, long width, const float* weight,
                  const float* bias, float eps, float* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > 65536)
  for (long r = 0; r < rows; ++r) {
    const float* row = x + r * ldx;
    float* target = out + r * width;
    float mean = 0.0f;
    if (bias) {
      lanes sum = {};
      for (long c = 0; c < width; c += 16) sum += load16(row + c, width - c);
      mean = total(sum) / width;
    }
    lanes squares = {};
    for (long c = 0; c < width; c += 16) {
      lanes d = load16(row + c, width - c) - mean;
      if (width - c < 16)
        for (long i = width - c; i < 16; ++i) d[i] = 0.0f;
      squares += d * d;
    }
    const float scale = 1.0f / std::sqrt(total(squares) / width + eps);
    for (long c = 0; c < width; ++c) {
      const float y = (row[c] - mean) * scale * weight[c];
      target[c] = bias ? y + bias[c] : y;
    }
  }
}

// Rotates the pairs (i, i + half) of each head, in place.
EXPORT(void rope)(float* x, long ldx, long rows, long heads, long half, const int64_t* positions,
                  const float* cosines, const float* sines) {
  for (long r = 0; r < rows; ++r) {
    const float* c = cosines + positions[r] * half;
    const float* s = sines + positions[r] * half;
    for (long h = 0; h < heads; ++h) {
      float* low = x + r * ldx + h * 2 * half;
      float* high = low + half;
      for (long i = 0; i < half; ++i) {
        const float a = low[i], b = high[i];
        low[i] = a * c[i] - b * s[i];
        high[i] = b * c[i] + a * s[i];
      }
    }
  }
}

// out = silu(gate) * up
EXPORT(void swiglu)(const float* gate, const float* up, long ld, long rows, long width, float* out,
                    int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > 16384)
  for (long r = 0; r < rows; ++r)
    for (long c = 0; c < width; c += 16) {
      const lanes g = load16(gate + r * ld + c, width - c), u = load16(up + r * ld + c, width - c);
      store16(out + r * width + c, g / (1.0f + exp16(-g)) * u, width - c);
    }
}

// GELU, tanh form: x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))
EXPORT(void gelu)(const float* x, long ldx, long rows, long width, float* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > 16384)
  for (long r = 0; r < rows; ++r)
    for (long c = 0; c < width; c += 16) {
      const lanes v = load16(x + r * ldx + c, width - c);
      const lanes u = 0.7978845608028654f * (v + 0.044715f * v * v * v);
      const lanes t = 1.0f - 2.0f / (exp16(2.0f * u) + 1.0f);
      store16(out + r * width + c, 0.5f * v * (1.0f + t), width - c);
    }
}

// Writes k and v of each token to its slot (block * block_size + offset) of one layer's cache.
EXPORT(void write_kv)(const float* k, long ldk, const float* v, long ldv, long tokens, long kv_heads,
                      long head_dim, const int64_t* slots, long block_size, float* keys,
                      float* values) {
  for (long t = 0; t < tokens; ++t) {
    const long block = slots[t] / block_size, offset = slots[t] % block_size;
    for (long g = 0; g < kv_heads; ++g) {
      const long base = (block * kv_heads + g) * block_size * head_dim;
      const float* from = k + t * ldk + g * head_dim;
      float* to = keys + base + offset;
      for (long d = 0; d < head_dim; ++d) to[d * block_size] = from[d];
      std::memcpy(values + base + offset * head_dim, v + t * ldv + g * head_dim,
                  head_dim * sizeof(float));
    }
  }
}

// Causal attention over a paged cache. A tile is up to `most` tokens of one sequence that follow
// one another: tile i covers tokens first[i] … first[i] + count[i], the first at position
// start[i], its blocks in table[i * table_width …]. Each row's result is its own; a tile only
// shares the reading of keys and values.
EXPORT(void attend)(const float* q, long ldq, long heads, long kv_heads, long head_dim, float scale,
                    const float* keys, const float* values, long block_size, long tiles,
                    const int32_t* first, const int32_t* count, const int32_t* start,
                    const int32_t* table, long table_width, float* out, long ldo, int threads) {
  const long group = heads / kv_heads;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> queries, scores, mixed;
#pragma omp for schedule(dynamic) collapse(2)
    for (long i = 0; i < tiles; ++i)
      for (long g = 0; g < kv_heads; ++g) {
        const long n = count[i], rows = n * group, reach = start[i] + n;
        const long blocks = (reach + block_size - 1) / block_size;
        const long stride = (blocks * block_size + 31) / 16 * 16;
        const int32_t* blocks_of = table + i * table_width;
        queries.resize(rows * head_dim);
        scores.resize(rows * stride);
        mixed.resize(rows * head_dim);
        for (long t = 0; t < n; ++t)
          for (long j = 0; j < group; ++j) {
            const float* from = q + (first[i] + t) * ldq + (g * group + j) * head_dim;
            float* to = queries.data() + (t * group + j) * head_dim;
            for (long d = 0; d < head_dim; ++d) to[d] = from[d] * scale;
          }
        for (long b = 0; b < blocks; ++b) {
          const float* panel = keys + (blocks_of[b] * kv_heads + g) * block_size * head_dim;
          product(rows, queries.data(), head_dim, head_dim, panel, block_size, block_size,
                  scores.data() + b * block_size, stride, false);
        }
        for (long r = 0; r < rows; ++r) {
          float* row = scores.data() + r * stride;
          const long seen = start[i] + r / group + 1;
          float top = row[0];
          for (long p = 1; p < seen; ++p) top = row[p] > top ? row[p] : top;
          lanes sum = {};
          for (long p = 0; p < seen; p += 16) {
            lanes e = exp16(*(const lanes*)(row + p) - top);
            for (long z = seen - p; z < 16; ++z) e[z] = 0.0f;
            *(lanes*)(row + p) = e;
            sum += e;
          }
          for (long p = seen; p < reach; ++p) row[p] = 0.0f;
          const float inverse = 1.0f / total(sum);
          for (long p = 0; p < seen; ++p) row[p] *= inverse;
        }
        // Positions past `reach` are never read: they may hold another sequence's values.
        for (long b = 0; b < blocks; ++b) {
          const float* panel = values + (blocks_of[b] * kv_heads + g) * block_size * head_dim;
          product(rows, scores.data() + b * block_size, stride,
                  std::min(block_size, reach - b * block_size), panel, head_dim, head_dim,
                  mixed.data(), head_dim, b > 0);
        }
        for (long t = 0; t < n; ++t)
          std::memcpy(out + (first[i] + t) * ldo + g * group * head_dim,
                      mixed.data() + t * group * head_dim, group * head_dim * sizeof(float));
      }
  }
}
