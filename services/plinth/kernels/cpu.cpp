// The CPU kernels of inference. Compiled once per instruction set (ISA names the suffix); plain C in,
// plain C out. Rows stand alone, as `tiles.h` says; attention keeps the same rule: scores over the
// head's features in order, values over positions in order, the softmax's sum in 16 fixed lanes.
//
// Layouts (row-major, fp32):
//   packed weights  [ceil(out/32)][in][32], zero-padded
//   keys            [block][kv_head][head_dim][block_size]   (positions run across a vector)
//   values          [block][kv_head][block_size][head_dim]

#include "tiles.h"

// Four blocks of Philox4x64-10 (Salmon et al. 2011) that follow one another: 16 numbers of the
// stream that numpy's `Philox(key=[seed, 0], counter=[0, position, sample, purpose])` makes, which
// counts up before its first block.
struct Stream {
  uint64_t seed, position, sample, purpose;
};

inline void philox16(const Stream& s, uint64_t first_block, uint64_t* out) {
  constexpr uint64_t M0 = 0xD2E7470EE14C6C93, M1 = 0xCA5A826395121157;
  constexpr uint64_t W0 = 0x9E3779B97F4A7C15, W1 = 0xBB67AE8584CAA73B;
  uint64_t c[4][4];
  for (int b = 0; b < 4; ++b) {
    c[b][0] = first_block + b + 1;
    c[b][1] = s.position;
    c[b][2] = s.sample;
    c[b][3] = s.purpose;
  }
  uint64_t k0 = s.seed, k1 = 0;
  for (int round = 0; round < 10; ++round, k0 += W0, k1 += W1)
    for (int b = 0; b < 4; ++b) {
      const unsigned __int128 p0 = (unsigned __int128)M0 * c[b][0];
      const unsigned __int128 p1 = (unsigned __int128)M1 * c[b][2];
      c[b][0] = (uint64_t)(p1 >> 64) ^ c[b][1] ^ k0;
      c[b][2] = (uint64_t)(p0 >> 64) ^ c[b][3] ^ k1;
      c[b][1] = (uint64_t)p1;
      c[b][3] = (uint64_t)p0;
    }
  std::memcpy(out, c, sizeof c);
}

// One number of the stream, in (0, 1), 52 bits.
inline double uniform(const Stream& s, long at) {
  uint64_t four[16];
  philox16(s, at / 4, four);
  return ((double)(four[at % 4] >> 12) + 0.5) * 0x1p-52;
}

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

// One token per row by the exponential race: argmin of -ln u / p, which is argmax of x - ln(-ln u)
// with x the logit over the temperature. Single precision finds who may have won (its error is
// below a quarter of MARGIN), double precision says who has, so that the winner is the one that
// double precision would name throughout. A number too near 0 or 1 for single precision is always
// looked at again. `logprob` is at the temperature, `raw` at temperature 1.
EXPORT(void race)(const float* logits, long ldl, long rows, long vocabulary, const double* temperature,
             const uint64_t* seed, const uint64_t* sample, const uint64_t* position,
             uint64_t purpose, int64_t* token, double* logprob, double* raw, int threads) {
  constexpr float MARGIN = 8e-4f;
  constexpr int32_t NEAR = 1 << 14, MOST = 0x7fffffff;
  typedef double dlanes __attribute__((vector_size(128), aligned(8)));
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> score((vocabulary + 15) / 16 * 16);
    std::vector<long> again;
#pragma omp for schedule(dynamic)
    for (long r = 0; r < rows; ++r) {
      const float* row = logits + r * ldl;
      const Stream stream{seed[r], position[r], sample[r], purpose};
      const double heat = temperature[r];
      const float cold = (float)(1.0 / heat);
      float top = row[0];
      for (long i = 1; i < vocabulary; ++i) top = row[i] > top ? row[i] : top;
      dlanes weights = {}, plain = {};
      lanes best = lanes{} - INFINITY;
      again.clear();
      for (long i = 0; i < vocabulary; i += 16) {
        const long count = vocabulary - i;
        uint64_t bits[16];
        philox16(stream, i / 4, bits);
        ilanes low;
        for (int z = 0; z < 16; ++z) low[z] = (int32_t)(bits[z] >> 33);
        const ilanes high = MOST - low;
        // -ln u from u and 1 - u, after Kahan's log1p.
        const lanes u = (__builtin_convertvector(low, lanes) + 0.5f) * 0x1p-31f;
        const lanes rest = (__builtin_convertvector(high, lanes) + 0.5f) * 0x1p-31f;
        const lanes one = lanes{} + 1.0f;
        const lanes wait = u < one ? -log16(u) * rest / (one - u) : rest;
        lanes x = load16(row + i, count) - top;
        const lanes hot = x * cold;
        lanes weight = exp16(hot), unscaled = heat == 1.0 ? weight : exp16(x);
        lanes mine = hot - log16(wait);
        if (count < 16)
          for (long z = count; z < 16; ++z) weight[z] = unscaled[z] = 0.0f, mine[z] = -INFINITY;
        weights += __builtin_convertvector(weight, dlanes);
        plain += __builtin_convertvector(unscaled, dlanes);
        best = mine > best ? mine : best;
        *(lanes*)(score.data() + i) = mine;
        const ilanes extreme = (low < NEAR) | (high < NEAR);
        int any = 0;
        for (int z = 0; z < 16; ++z) any |= extreme[z];
        if (any)
          for (long z = 0; z < std::min(count, 16L); ++z)
            if (extreme[z]) again.push_back(i + z);
      }
      float limit = best[0];
      for (int z = 1; z < 16; ++z) limit = best[z] > limit ? best[z] : limit;
      limit -= MARGIN;
      for (long i = 0; i < vocabulary; ++i)
        if (score[i] >= limit) again.push_back(i);
      long winner = 0;
      double leading = -INFINITY;
      for (const long i : again) {
        const double x = ((double)row[i] - top) / heat;
        const double mine = x - log64(-log64(uniform(stream, i)));
        if (mine > leading || (mine == leading && i < winner)) leading = mine, winner = i;
      }
      double sum = 0.0, total = 0.0;
      for (int z = 0; z < 16; ++z) sum += weights[z], total += plain[z];
      token[r] = winner;
      logprob[r] = ((double)row[winner] - top) / heat - log64(sum);
      raw[r] = (double)row[winner] - top - log64(total);
    }
  }
}
