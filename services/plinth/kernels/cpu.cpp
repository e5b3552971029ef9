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

// Rotates the pairs (i, i + half) of each head of e features, backwards where `turn` is -1; the
// features from 2 half on stay. out may be x.
EXPORT(void rope)(const float* x, long ldx, long rows, long heads, long e, long half,
                  const int64_t* positions, const float* cosines, const float* sines, float turn,
                  float* out, long ldo, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * heads * half > 16384)
  for (long r = 0; r < rows; ++r) {
    const float* c = cosines + positions[r] * half;
    const float* s = sines + positions[r] * half;
    for (long h = 0; h < heads; ++h) {
      const float *low = x + r * ldx + h * e, *high = low + half;
      float* target = out + r * ldo + h * e;
#pragma omp simd
      for (long i = 0; i < half; ++i) {
        const float a = low[i], b = high[i], sine = turn * s[i];
        target[i] = a * c[i] - b * sine;
        target[i + half] = b * c[i] + a * sine;
      }
      if (target != low) std::memcpy(target + 2 * half, low + 2 * half, (e - 2 * half) * sizeof(float));
    }
  }
}

// out = activation(gate) * up, or activation(gate) where there is no up.
EXPORT(void activate)(int kind, const float* gate, long ldg, const float* up, long ldu, long rows,
                      long width, float* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > 16384)
  for (long r = 0; r < rows; ++r)
    for (long c = 0; c < width; c += 16) {
      lanes y = activated(kind, load16(gate + r * ldg + c, width - c));
      if (up) y = y * load16(up + r * ldu + c, width - c);
      store16(out + r * width + c, y, width - c);
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

// Causal attention over a paged cache, of the last `window` tokens where that is not 0; scores are
// capped at ±cap where that is not. A tile is up to `most` tokens of one sequence that follow
// one another: tile i covers tokens first[i] … first[i] + count[i], the first at position
// start[i], its blocks, but for the first skipped[i], in table[i * table_width …]. Each row's result
// is its own; a tile only shares the reading of keys and values.
EXPORT(void attend)(const float* q, long ldq, long heads, long kv_heads, long head_dim, float scale,
                    const float* keys, const float* values, long block_size, long tiles,
                    const int32_t* first, const int32_t* count, const int32_t* start,
                    const int32_t* skipped, const int32_t* table, long table_width, long window,
                    float cap, float* out, long ldo, int threads) {
  const long group = heads / kv_heads;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> queries, scores, mixed;
#pragma omp for schedule(dynamic) collapse(2)
    for (long i = 0; i < tiles; ++i)
      for (long g = 0; g < kv_heads; ++g) {
        const long n = count[i], rows = n * group, reach = start[i] + n;
        const long blocks = (reach + block_size - 1) / block_size;
        // What lies before the first token's window may be another sequence's by now.
        const long low = window ? std::max(0L, start[i] + 1 - window) : 0;
        const long first_block = low / block_size;
        const long stride = (blocks * block_size + 31) / 16 * 16;
        const int32_t* blocks_of = table + i * table_width - skipped[i];
        queries.resize(rows * head_dim);
        scores.resize(rows * stride);
        mixed.resize(rows * head_dim);
        for (long t = 0; t < n; ++t)
          for (long j = 0; j < group; ++j) {
            const float* from = q + (first[i] + t) * ldq + (g * group + j) * head_dim;
            float* to = queries.data() + (t * group + j) * head_dim;
            for (long d = 0; d < head_dim; ++d) to[d] = from[d] * scale;
          }
        for (long b = first_block; b < blocks; ++b) {
          const float* panel = keys + (blocks_of[b] * kv_heads + g) * block_size * head_dim;
          product(rows, queries.data(), head_dim, head_dim, panel, block_size, block_size,
                  scores.data() + b * block_size, stride, false);
        }
        for (long r = 0; r < rows; ++r) {
          float* row = scores.data() + r * stride;
          const long seen = start[i] + r / group + 1;
          const long from = window ? std::max(0L, seen - window) : 0;
          // In chunks of 16 positions counted from 0, whatever the window, the tile and the blocks.
          const long chunk = from / 16 * 16;
          if (cap)
            for (long p = chunk; p < seen; p += 16) {
              const lanes s = *(const lanes*)(row + p);
              *(lanes*)(row + p) = cap * tanh16(s / cap);
            }
          float top = row[from];
          for (long p = from + 1; p < seen; ++p) top = row[p] > top ? row[p] : top;
          lanes sum = {};
          for (long p = chunk; p < seen; p += 16) {
            lanes e = exp16(*(const lanes*)(row + p) - top);
            for (long z = 0; z < from - p; ++z) e[z] = 0.0f;
            for (long z = seen - p; z < 16; ++z) e[z] = 0.0f;
            *(lanes*)(row + p) = e;
            sum += e;
          }
          for (long p = first_block * block_size; p < chunk; ++p) row[p] = 0.0f;
          for (long p = seen; p < reach; ++p) row[p] = 0.0f;
          const float inverse = 1.0f / total(sum);
          for (long p = from; p < seen; ++p) row[p] *= inverse;
        }
        // Positions past `reach` are never read: they may hold another sequence's values.
        for (long b = first_block; b < blocks; ++b) {
          const long skip = b == first_block ? low - b * block_size : 0;
          const float* panel = values + (blocks_of[b] * kv_heads + g) * block_size * head_dim;
          product(rows, scores.data() + b * block_size + skip, stride,
                  std::min(block_size, reach - b * block_size) - skip, panel + skip * head_dim,
                  head_dim, head_dim, mixed.data(), head_dim, b > first_block);
        }
        for (long t = 0; t < n; ++t)
          std::memcpy(out + (first[i] + t) * ldo + g * group * head_dim,
                      mixed.data() + t * group * head_dim, group * head_dim * sizeof(float));
      }
  }
}
