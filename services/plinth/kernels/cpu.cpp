// The CPU kernels of inference. Compiled once per instruction set (ISA names the suffix); plain C in,
// plain C out. Rows stand alone, as `tiles.h` says; attention keeps the same rule: scores over the
// head's features in order, values over positions in order, the softmax's sum in 16 fixed lanes.
//
// Layouts (row-major, fp32):
//   packed weights  [ceil(out/32)][in][32], zero-padded
//   keys            [block][kv_head][head_dim][block_size]   (positions run across a vector)
//   values          [block][kv_head][block_size][head_dim]

#include "tiles.h"

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
      squares = fma(d, d, squares);
    }
    const float scale = 1.0f / std::sqrt(total(squares) / width + eps);
    for (long c = 0; c < width; ++c) {
      const float y = (row[c] - mean) * scale * weight[c];
      target[c] = bias ? y + bias[c] : y;
    }
  }
}

// Rotates the pairs (i, i + half) of each head, backwards where `turn` is -1; out may be x.
EXPORT(void rope)(const float* x, long ldx, long rows, long heads, long half,
                  const int64_t* positions, const float* cosines, const float* sines, float turn,
                  float* out, long ldo, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * heads * half > 16384)
  for (long r = 0; r < rows; ++r) {
    const float* c = cosines + positions[r] * half;
    const float* s = sines + positions[r] * half;
    for (long h = 0; h < heads; ++h) {
      const float *low = x + r * ldx + h * 2 * half, *high = low + half;
      float* target = out + r * ldo + h * 2 * half;
#pragma omp simd
      for (long i = 0; i < half; ++i) {
        const float a = low[i], b = high[i], sine = turn * s[i];
        target[i] = a * c[i] - b * sine;
        target[i + half] = b * c[i] + a * sine;
      }
    }
  }
}

// out = silu(gate) * up
EXPORT(void swiglu)(const float* gate, long ldg, const float* up, long ldu, long rows, long width,
                    float* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > 16384)
  for (long r = 0; r < rows; ++r)
    for (long c = 0; c < width; c += 16) {
      const lanes g = load16(gate + r * ldg + c, width - c);
      const lanes u = load16(up + r * ldu + c, width - c);
      store16(out + r * width + c, g / (1.0f + exp16(-g)) * u, width - c);
    }
}

// GELU, tanh form: x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))
EXPORT(void gelu)(const float* x, long ldx, long rows, long width, float* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > 16384)
  for (long r = 0; r < rows; ++r)
    for (long c = 0; c < width; c += 16) {
      const lanes v = load16(x + r * ldx + c, width - c);
      const lanes u = 0.7978845608028654f * (fma(0.044715f * v, v * v, v));
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
