// Mixtures of experts: which experts a row goes to, and what they make of it. Built as `cpu.cpp` is.
// A row's choice, its products (`tiles.h`) and the order in which they are added up, by the experts'
// numbers, are its own: the bits do not depend on which rows share an expert with it.

#include "tiles.h"

namespace {

constexpr long ROWS = 4 * MAX_ROWS;  // of one expert at a time: what they become stays in the cache

// Rows by expert, those of expert e at order[first[e]] … order[first[e + 1]], each as its place in
// [rows][chosen].
struct Groups {
  std::vector<long> first, order;

  Groups(const int32_t* experts, long places, long count) : first(count + 1), order(places) {
    for (long i = 0; i < places; ++i) ++first[experts[i] + 1];
    for (long e = 0; e < count; ++e) first[e + 1] += first[e];
    std::vector<long> next(first.begin(), first.end() - 1);
    for (long i = 0; i < places; ++i) order[next[experts[i]]++] = i;
  }
  // The experts that any row goes to, in order.
  std::vector<long> used() const {
    std::vector<long> found;
    for (size_t e = 0; e + 1 < first.size(); ++e)
      if (first[e + 1] > first[e]) found.push_back(e);
    return found;
  }
};

}  // namespace

// The `chosen` largest of each row's logits, the lower number first of equal ones, and their
// weights: softmax over all of the row, divided by the sum of those chosen where `normalised`.
EXPORT(void route)(const float* logits, long ldl, long rows, long count, long chosen,
                   int normalised, int32_t* experts, float* weights) {
  std::vector<char> taken(count);
  for (long r = 0; r < rows; ++r) {
    const float* row = logits + r * ldl;
    float top = row[0];
    for (long e = 1; e < count; ++e) top = row[e] > top ? row[e] : top;
    lanes sum = {};
    for (long e = 0; e < count; e += 16) {
      lanes p = exp16(load16(row + e, count - e) - top);
      for (long z = count - e; z < 16; ++z) p[z] = 0.0f;
      sum += p;
    }
    std::fill(taken.begin(), taken.end(), 0);
    float kept = 0.0f;
    for (long j = 0; j < chosen; ++j) {
      long best = -1;
      // The first one left where nothing is larger, as where all are not numbers.
      for (long e = 0; e < count; ++e)
        if (!taken[e] && (best < 0 || row[e] > row[best])) best = e;
      taken[best] = 1;
      experts[r * chosen + j] = best;
      const float p = exp16(all16(row[best] - top))[0] / total(sum);
      weights[r * chosen + j] = p;
      kept += p;
    }
    for (long j = 0; normalised && j < chosen; ++j) weights[r * chosen + j] /= kept;
  }
}

// out[rows][width] = Σ over a row's experts of weight · down(activation(gate(x)) * up(x)). Packed
// weights as `linear` has them, one expert after another: gate and up [count][ceil(inner/32)]
// [width][32], down [count][ceil(width/32)][inner][32].
EXPORT(void experts)(const float* x, long ldx, long rows, long width, const int32_t* experts,
                     const float* weights, long chosen, int kind, const float* gate,
                     const float* up, const float* down, long count, long inner, float* out,
                     int threads) {
  const Groups groups(experts, rows * chosen, count);
  const std::vector<long> used = groups.used();
  const long wide = (inner + PANEL - 1) / PANEL, panels = (width + PANEL - 1) / PANEL;
  std::vector<float> hidden(rows * chosen * inner);  // in the order of the groups
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> given;
    float one[ROWS * PANEL], two[ROWS * PANEL];
    long gathered = -1;
#pragma omp for schedule(dynamic) collapse(2)
    for (size_t u = 0; u < used.size(); ++u)
      for (long p = 0; p < wide; ++p) {
        const long e = used[u], begin = groups.first[e], n = groups.first[e + 1] - begin;
        if (gathered != e) {
          given.resize(n * width);
          for (long i = 0; i < n; ++i)
            std::memcpy(given.data() + i * width, x + groups.order[begin + i] / chosen * ldx,
                        width * sizeof(float));
          gathered = e;
        }
        const long panel = (e * wide + p) * width * PANEL;
        const long columns = std::min<long>(PANEL, inner - p * PANEL);
        for (long r = 0; r < n; r += ROWS) {
          const long take = std::min(ROWS, n - r);
          const float* from = given.data() + r * width;
          product(take, from, width, width, gate + panel, PANEL, PANEL, one, PANEL, false);
          product(take, from, width, width, up + panel, PANEL, PANEL, two, PANEL, false);
          for (long i = 0; i < take; ++i) {
            float* to = hidden.data() + (begin + r + i) * inner + p * PANEL;
            for (long c = 0; c < columns; c += 16) {
              const lanes a = load16(one + i * PANEL + c, 16), b = load16(two + i * PANEL + c, 16);
              store16(to + c, activated(kind, a) * b, columns - c);
            }
          }
        }
      }
#pragma omp for schedule(static)
    for (long p = 0; p < panels; ++p) {
      const long columns = std::min<long>(PANEL, width - p * PANEL);
      for (long r = 0; r < rows; ++r)
        for (long c = 0; c < columns; ++c) out[r * width + p * PANEL + c] = 0.0f;
      for (const long e : used) {
        const long begin = groups.first[e], n = groups.first[e + 1] - begin;
        const float* panel = down + (e * panels + p) * inner * PANEL;
        for (long r = 0; r < n; r += ROWS) {
          const long take = std::min(ROWS, n - r);
          product(take, hidden.data() + (begin + r) * inner, inner, inner, panel, PANEL, PANEL, one,
                  PANEL, false);
          for (long i = 0; i < take; ++i) {
            const long place = groups.order[begin + r + i];
            float* to = out + place / chosen * width + p * PANEL;
            for (long c = 0; c < columns; ++c) to[c] = fma(weights[place], one[i * PANEL + c], to[c]);
          }
        }
      }
    }
  }
}
