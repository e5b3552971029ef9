// The CPU kernels between logits and a token: the exponential race, the softmax's normaliser, and
// e^x and ln x in double precision. Built as `cpu.cpp` is.

#include <cfloat>

#include "tiles.h"

namespace {

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

// The largest of a row, in 16 lanes: compilers keep the order of a loop over single floats.
inline float largest(const float* row, long count) {
  lanes best = lanes{} - INFINITY;
  long i = 0;
  for (; i + 16 <= count; i += 16) {
    const lanes x = *(const lanes*)(row + i);
    best = x > best ? x : best;
  }
  float top = best[0];
  for (int z = 1; z < 16; ++z) top = best[z] > top ? best[z] : top;
  for (; i < count; ++i) top = row[i] > top ? row[i] : top;
  return top;
}

// One number of the stream, in (0, 1), 52 bits.
inline double uniform(const Stream& s, long at) {
  uint64_t four[16];
  philox16(s, at / 4, four);
  return ((double)(four[at % 4] >> 12) + 0.5) * 0x1p-52;
}

typedef double dlanes __attribute__((vector_size(128), aligned(8)));

}  // namespace

// One token per row by the exponential race: argmin of -ln u / p, which is argmax of x - ln(-ln u)
// with x the logit over the temperature. Single precision finds who may have won (its error is
// below a quarter of MARGIN), double precision says who has, so that the winner is the one that
// double precision would name throughout. A number too near 0 or 1 for single precision is always
// looked at again. `logprob` is at the temperature, `raw` at temperature 1.
EXPORT(void race)(const float* logits, long ldl, long rows, long vocabulary,
                  const double* temperature, const uint64_t* seed, const uint64_t* sample,
                  const uint64_t* position, uint64_t purpose, int64_t* token, double* logprob,
                  double* raw, int threads) {
  constexpr float MARGIN = 8e-4f;
  constexpr int32_t NEAR = 1 << 14, MOST = 0x7fffffff;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> score((vocabulary + 15) / 16 * 16);
    std::vector<long> again;
#pragma omp for schedule(dynamic)
    for (long r = 0; r < rows; ++r) {
      const float* row = logits + r * ldl;
      const Stream stream{seed[r], position[r], sample[r], purpose};
      const double heat = temperature[r];
      const float cold = (float)std::min(1.0 / heat, (double)FLT_MAX);  // no 0 * infinity
      const float top = largest(row, vocabulary);
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

// ln Σ e^x of each row: terms in single precision beside the largest, summed in 16 fixed
// lanes of double precision.
EXPORT(void normalisers)(const float* logits, long ldl, long rows, long vocabulary, double* out,
                         int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long r = 0; r < rows; ++r) {
    const float* row = logits + r * ldl;
    const float top = largest(row, vocabulary);
    dlanes sums = {};
    for (long i = 0; i < vocabulary; i += 16) {
      const long count = vocabulary - i;
      lanes weight = exp16(load16(row + i, count) - top);
      for (long z = count; z < 16; ++z) weight[z] = 0.0f;
      sums += __builtin_convertvector(weight, dlanes);
    }
    double sum = 0.0;
    for (int z = 0; z < 16; ++z) sum += sums[z];
    out[r] = top + log64(sum);
  }
}

// out = e^x, element by element.
EXPORT(void exponentials)(const double* x, long size, double* out) {
  for (long i = 0; i < size; ++i) out[i] = exp64(x[i]);
}

// out = ln x, element by element.
EXPORT(void logarithms)(const double* x, long size, double* out) {
  for (long i = 0; i < size; ++i) out[i] = log64(x[i]);
}
