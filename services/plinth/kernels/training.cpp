// The CPU kernels that training adds: attention over whole sequences, and gradients. Built as
// `cpu.cpp` is. Who computes what is fixed by the shapes and the number of threads, and so are the
// bits.

#include "tiles.h"

namespace {

constexpr long TILE = 48;  // queries at a time: enough to reuse what the first-level cache holds

inline long upto(long size, long unit) { return (size + unit - 1) / unit * unit; }

// What one thread keeps of one sequence and KV head. Heads are padded with zeros to whole vectors,
// [T][wide], and transposed [e][reach].
struct Side {
  std::vector<float> straight, turned;

  void take(const float* from, long ld, long length, long e, long wide, long reach) {
    straight.assign(length * wide, 0.0f);
    turned.assign(e * reach, 0.0f);
    for (long t = 0; t < length; ++t)
      for (long d = 0; d < e; ++d) straight[t * wide + d] = turned[d * reach + t] = from[t * ld + d];
  }
};

// Rows of one head, padded to whole vectors, times a factor.
inline void rows_of(const float* from, long ld, long n, long e, long wide, float factor,
                    std::vector<float>& to) {
  to.assign(n * wide, 0.0f);
  for (long r = 0; r < n; ++r)
    for (long d = 0; d < e; ++d) to[r * wide + d] = from[r * ld + d] * factor;
}

// The columns that a tile of queries looks at: from the first one's segment to the last one itself.
struct Span {
  long low, depth, columns;
  const int32_t* first;

  Span(const int32_t* firsts, long r0, long n) {
    first = firsts ? firsts + r0 : nullptr;
    low = first ? first[0] / 32 * 32 : 0;
    depth = r0 + n - low;
    columns = upto(depth, 32);
  }
  // Caps a row of scores, where there is a cap, and hides from it what it may not see.
  void limit(float* row, long r, long r0, float cap) const {
    if (cap)
      for (long c = 0; c < columns; c += 16)
        *(lanes*)(row + c) = cap * tanh16(*(const lanes*)(row + c) / cap);
    for (long c = 0; first && c < first[r] - low; ++c) row[c] = -INFINITY;
    for (long c = r0 + r + 1 - low; c < columns; ++c) row[c] = -INFINITY;
  }
};

}  // namespace

// Causal attention, scores capped at ±cap where that is not 0: q [B·T][heads][e], k and v [B·T][kv_heads][e], out [B·T][heads·e]. A token
// sees itself and those of its sequence before it, from `firsts` on (null: from the start; must
// not fall within a sequence). `lse` [B][heads][T] is the logarithm of the softmax's denominator.
EXPORT(void attend_whole)(const float* q, const float* k, const float* v, const int32_t* firsts,
                          long b, long t, long heads, long kv_heads, long e, float scale,
                          float cap, float* out, float* lse, int threads) {
  const long group = heads / kv_heads, wide = upto(e, 16), reach = upto(t, 32);
  const long ldq = heads * e, ldk = kv_heads * e;
#pragma omp parallel num_threads(threads)
  {
    Side keys, values;
    std::vector<float> queries, scores, mixed(TILE * wide);
#pragma omp for schedule(dynamic) collapse(2)
    for (long i = 0; i < b; ++i)
      for (long g = 0; g < kv_heads; ++g) {
        keys.take(k + i * t * ldk + g * e, ldk, t, e, wide, reach);
        values.take(v + i * t * ldk + g * e, ldk, t, e, wide, reach);
        for (long h = g * group; h < (g + 1) * group; ++h)
          for (long r0 = 0; r0 < t; r0 += TILE) {
            const long n = std::min(TILE, t - r0), start = (i * t + r0) * ldq + h * e;
            const Span span(firsts ? firsts + i * t : nullptr, r0, n);
            rows_of(q + start, ldq, n, e, wide, scale, queries);
            scores.resize(n * span.columns);
            product(n, queries.data(), wide, e, keys.turned.data() + span.low, reach, span.columns,
                    scores.data(), span.columns, false);
            for (long r = 0; r < n; ++r) {
              float* row = scores.data() + r * span.columns;
              span.limit(row, r, r0, cap);
              lanes tops = *(const lanes*)row, sum = {};
              for (long c = 16; c < span.columns; c += 16) {
                const lanes s = *(const lanes*)(row + c);
                tops = s > tops ? s : tops;
              }
              float top = tops[0];
              for (int l = 1; l < 16; ++l) top = tops[l] > top ? tops[l] : top;
              for (long c = 0; c < span.columns; c += 16) {
                const lanes p = exp16(*(const lanes*)(row + c) - top);
                *(lanes*)(row + c) = p;
                sum += p;
              }
              const float all = total(sum), inverse = 1.0f / all;
              for (long c = 0; c < span.columns; ++c) row[c] *= inverse;
              lse[(i * heads + h) * t + r0 + r] = top + (float)log64(all);
            }
            product(n, scores.data(), span.columns, span.depth,
                    values.straight.data() + span.low * wide, wide, wide, mixed.data(), wide,
                    false);
            for (long r = 0; r < n; ++r)
              std::memcpy(out + start + r * ldq, mixed.data() + r * wide, e * sizeof(float));
          }
      }
  }
}

// The gradients of `attend_whole`, by its own results (Dao et al. 2022): probabilities are computed
// again, a tile at a time. Gradients have the layouts of what they are gradients of.
EXPORT(void attend_whole_back)(const float* q, const float* k, const float* v,
                               const int32_t* firsts, const float* out, const float* lse,
                               const float* grad, long b, long t, long heads, long kv_heads,
                               long e, float scale, float cap, float* grad_q, float* grad_k,
                               float* grad_v, int threads) {
  const long group = heads / kv_heads, wide = upto(e, 16), reach = upto(t, 32);
  const long ldq = heads * e, ldk = kv_heads * e;
#pragma omp parallel num_threads(threads)
  {
    Side keys, values;
    std::vector<float> queries, grads, p, dp, mixed(TILE * wide), sum_k, sum_v;
#pragma omp for schedule(dynamic) collapse(2)
    for (long i = 0; i < b; ++i)
      for (long g = 0; g < kv_heads; ++g) {
        keys.take(k + i * t * ldk + g * e, ldk, t, e, wide, reach);
        values.take(v + i * t * ldk + g * e, ldk, t, e, wide, reach);
        sum_k.assign(t * wide, 0.0f);
        sum_v.assign(t * wide, 0.0f);
        for (long h = g * group; h < (g + 1) * group; ++h)
          for (long r0 = 0; r0 < t; r0 += TILE) {
            const long n = std::min(TILE, t - r0), start = (i * t + r0) * ldq + h * e;
            const Span span(firsts ? firsts + i * t : nullptr, r0, n);
            const long columns = span.columns, low = span.low;
            rows_of(q + start, ldq, n, e, wide, scale, queries);
            rows_of(grad + start, ldq, n, e, wide, 1.0f, grads);
            p.resize(n * columns);
            dp.resize(n * columns);
            product(n, queries.data(), wide, e, keys.turned.data() + low, reach, columns, p.data(),
                    columns, false);
            product(n, grads.data(), wide, e, values.turned.data() + low, reach, columns,
                    dp.data(), columns, false);
            for (long r = 0; r < n; ++r) {
              float *row = p.data() + r * columns, *slope = dp.data() + r * columns;
              const float shift = lse[(i * heads + h) * t + r0 + r];
              float along = 0.0f;
              for (long d = 0; d < e; ++d)
                along += grads[r * wide + d] * out[start + r * ldq + d];
              span.limit(row, r, r0, cap);
              for (long c = 0; c < columns; c += 16) {
                const lanes score = *(const lanes*)(row + c), weight = exp16(score - shift);
                *(lanes*)(row + c) = weight;
                const lanes change = weight * (*(const lanes*)(slope + c) - along);
                if (cap) {  // of cap tanh(s / cap): 1 - tanh²; what is hidden changes nothing
                  const lanes tangent = score / cap, bent = change * (1.0f - tangent * tangent);
                  *(lanes*)(slope + c) = weight > 0.0f ? bent : lanes{};
                } else {
                  *(lanes*)(slope + c) = change;
                }
              }
            }
            product(n, dp.data(), columns, span.depth, keys.straight.data() + low * wide, wide,
                    wide, mixed.data(), wide, false);
            for (long r = 0; r < n; ++r)
              for (long d = 0; d < e; ++d)
                grad_q[start + r * ldq + d] = mixed[r * wide + d] * scale;
            // The queries carry the scale already.
            product<true>(span.depth, dp.data(), columns, n, queries.data(), wide, wide,
                          sum_k.data() + low * wide, wide, true);
            product<true>(span.depth, p.data(), columns, n, grads.data(), wide, wide,
                          sum_v.data() + low * wide, wide, true);
          }
        for (long r = 0; r < t; ++r) {
          const long to = (i * t + r) * ldk + g * e;
          std::memcpy(grad_k + to, sum_k.data() + r * wide, e * sizeof(float));
          std::memcpy(grad_v + to, sum_v.data() + r * wide, e * sizeof(float));
        }
      }
  }
}

// The gradients of RMSNorm. `part` t of `parts` [threads][width] sums its share of the rows in
// order, so the bits of weight's gradient depend on the number of threads alone.
EXPORT(void norm_back)(const float* x, const float* grad, long rows, long width,
                       const float* weight, float eps, float* grad_x, float* parts, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int t = 0; t < threads; ++t) {
    float* part = parts + t * width;
    for (long c = 0; c < width; ++c) part[c] = 0.0f;
    for (long r = rows * t / threads; r < rows * (t + 1) / threads; ++r) {
      const float *row = x + r * width, *g = grad + r * width;
      lanes squares = {}, products = {};
      for (long c = 0; c < width; c += 16) {
        const lanes v = load16(row + c, width - c);
        squares += v * v;
        products += v * load16(g + c, width - c) * load16(weight + c, width - c);
      }
      const float scale = 1.0f / std::sqrt(total(squares) / width + eps);
      const float pull = scale * scale * scale * total(products) / width;
      for (long c = 0; c < width; c += 16) {
        const long left = width - c;
        const lanes v = load16(row + c, left), gv = load16(g + c, left);
        store16(grad_x + r * width + c, gv * load16(weight + c, left) * scale - v * pull, left);
        store16(part + c, load16(part + c, left) + gv * v * scale, left);
      }
    }
  }
}

// The gradients of silu(gate) * up, all contiguous.
EXPORT(void swiglu_back)(const float* gate, const float* up, const float* grad, long size,
                         float* grad_gate, float* grad_up, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (size > 16384)
  for (long c = 0; c < size; c += 16) {
    const long left = size - c;
    const lanes g = load16(gate + c, left), u = load16(up + c, left), d = load16(grad + c, left);
    const lanes sigmoid = 1.0f / (1.0f + exp16(-g)), silu = g * sigmoid;
    store16(grad_up + c, d * silu, left);
    store16(grad_gate + c, d * u * (sigmoid + silu * (1.0f - sigmoid)), left);
  }
}
