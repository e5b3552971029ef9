// e^x and ln x, made of operations that every processor rounds alike. The C library's, numpy's and
// torch's are not: they have another variant, with other last bits, for each instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "fma.h"

namespace {

inline lanes all16(float a) { return lanes{} + a; }

// e^x in 16 lanes: Cephes' expf (range reduction by ln 2, polynomial of degree 5).
inline lanes exp16(lanes x) {
  const lanes high = all16(88.3762626647950f), low = all16(-87.3365478515625f);
  const ilanes under = x < low;
  x = x > high ? high : x;
  x = x < low ? low : x;
  lanes n = fma(x, all16(1.44269504088896341f), all16(0.5f));
  ilanes whole = __builtin_convertvector(n, ilanes);
  lanes floor = __builtin_convertvector(whole, lanes);
  whole = floor > n ? whole - 1 : whole;
  n = __builtin_convertvector(whole, lanes);
  x = fma(n, all16(-0.693359375f), x);
  x = fma(n, all16(2.12194440e-4f), x);
  lanes y = fma(all16(1.9875691500E-4f), x, all16(1.3981999507E-3f));
  y = fma(y, x, all16(8.3334519073E-3f));
  y = fma(y, x, all16(4.1665795894E-2f));
  y = fma(y, x, all16(1.6666665459E-1f));
  y = fma(y, x, all16(5.0000001201E-1f));
  y = fma(y, x * x, x) + 1.0f;
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
  lanes y = fma(all16(7.0376836292E-2f), m, all16(-1.1514610310E-1f));
  y = fma(y, m, all16(1.1676998740E-1f));
  y = fma(y, m, all16(-1.2420140846E-1f));
  y = fma(y, m, all16(1.4249322787E-1f));
  y = fma(y, m, all16(-1.6668057665E-1f));
  y = fma(y, m, all16(2.0000714765E-1f));
  y = fma(y, m, all16(-2.4999993993E-1f));
  y = fma(y, m, all16(3.3333331174E-1f));
  y = fma(y * m, z, n * -2.12194440e-4f);
  y = fma(all16(-0.5f), z, y);
  return fma(n, all16(0.693359375f), m + y);
}

// tanh x in 16 lanes: Cephes' tanhf (relative error near 0 stays small).
inline lanes tanh16(lanes x) {
  const lanes far = 1.0f - 2.0f / (exp16(2.0f * x) + 1.0f), z = x * x;
  lanes y = fma(all16(-5.70498872745E-3f), z, all16(2.06390887954E-2f));
  y = fma(y, z, all16(-5.37397155531E-2f));
  y = fma(y, z, all16(1.33314422036E-1f));
  y = fma(y, z, all16(-3.33332819422E-1f));
  y = fma(y * z, x, x);
  return z < 0.390625f ? y : far;
}

inline lanes polynomial16(const float* coefficients, int count, lanes x) {
  lanes y = all16(coefficients[0]);
  for (int i = 1; i < count; ++i) y = fma(y, x, all16(coefficients[i]));
  return y;
}

// 1 - erf x in 16 lanes for x >= 0: Cephes' erff and erfcf.
inline lanes erfc16(lanes x) {
  const float near[] = {7.853861353153693E-5f,  -8.010193625184903E-4f, 5.188327685732524E-3f,
                        -2.685381193529856E-2f, 1.128358514861418E-1f,  -3.761262582423300E-1f,
                        1.128379165726710E+0f};
  const float middle[] = {2.326819970068386E-2f, -1.387039388740657E-1f, 3.687424674597105E-1f,
                          -5.824733027278666E-1f, 6.210004621745983E-1f, -4.944515323274145E-1f,
                          3.404879937665872E-1f, -2.741127028184656E-1f, 5.638259427386472E-1f};
  const float far[] = {-1.047766399936249E+1f, 1.297719955372516E+1f, -7.495518717768503E+0f,
                       2.921019019210786E+0f,  -1.015265279202700E+0f, 4.218463358204948E-1f,
                       -2.820767439740514E-1f, 5.641895067754075E-1f};
  const lanes z = x * x, q = 1.0f / (x < 1.0f ? all16(1.0f) : x), y = q * q;
  const lanes tail = x < 2.0f ? polynomial16(middle, 9, y) : polynomial16(far, 8, y);
  return x < 1.0f ? 1.0f - x * polynomial16(near, 7, z) : exp16(-z) * q * tail;
}

// The activations of `calls.ACTIVATIONS`, by their places there. What is not a number stays so.
inline lanes activated(int kind, lanes x) {
  switch (kind) {
    case 0:  // silu
      return x / (1.0f + exp16(-x));
    case 1: {  // gelu: x Φ(x)
      const lanes half = 0.5f * erfc16((x < 0.0f ? -x : x) * 0.70710678118654752f);
      return x * (x < 0.0f ? half : 1.0f - half);
    }
    case 2: {  // gelu_tanh: x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))
      const lanes u = 0.7978845608028654f * (fma(0.044715f * x, x * x, x));
      const lanes t = 1.0f - 2.0f / (exp16(2.0f * u) + 1.0f);
      return 0.5f * x * (1.0f + t);
    }
    case 3:  // relu
      return x < 0.0f ? lanes{} : x;
    default: {  // relu2
      const lanes y = x < 0.0f ? lanes{} : x;
      return y * y;
    }
  }
}

// e^x in double precision: Cephes' exp. 0 below -708, where results stop being normal; infinity
// above 709.
inline double exp64(double x) {
  if (!(x > -708.0)) return x <= -708.0 ? 0.0 : x;
  if (x > 709.0) return INFINITY;
  const double n = std::floor(1.4426950408889634073599 * x + 0.5);
  x = (x - n * 6.93145751953125E-1) - n * 1.42860682030941723212E-6;
  const double z = x * x;
  double p = (1.26177193074810590878E-4 * z + 3.02994407707441961300E-2) * z;
  p = x * (p + 9.99999999999999999910E-1);
  double q = (3.00198505138664455042E-6 * z + 2.52448340349684104192E-3) * z;
  q = (q + 2.27265548208155028766E-1) * z + 2.00000000000000000005E0;
  const double y = 1.0 + 2.0 * (p / (q - p));
  const int64_t power = ((int64_t)n + 1023) << 52;
  double scale;
  std::memcpy(&scale, &power, sizeof scale);
  return y * scale;
}

// ln x in double precision: Cephes' log, by its one rational function for all exponents.
inline double log64(double x) {
  if (!(x > 0.0)) return x == 0.0 ? -INFINITY : NAN;
  if (x > 1.7976931348623157e308) return x;
  double n = 0.0;
  if (x < 0x1p-1022) x *= 0x1p54, n = -54.0;
  int64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  n += (double)((bits >> 52) - 1022);
  bits = (bits & 0x000fffffffffffff) | 0x3fe0000000000000;
  std::memcpy(&x, &bits, sizeof x);
  if (x < 0.70710678118654752440)
    n -= 1.0, x = (x + x) - 1.0;
  else
    x = x - 1.0;
  const double z = x * x;
  double p = 1.01875663804580931796E-4 * x + 4.97494994976747001425E-1;
  p = p * x + 4.70579119878881725854E0;
  p = p * x + 1.44989225341610930846E1;
  p = p * x + 1.79368678507819816313E1;
  p = p * x + 7.70838733755885391666E0;
  double q = x + 1.12873587189167450590E1;
  q = q * x + 4.52279145837532221105E1;
  q = q * x + 8.29875266912776603211E1;
  q = q * x + 7.11544750618563894466E1;
  q = q * x + 2.31251620126765340583E1;
  double y = x * (z * p / q) - n * 2.121944400546905827679e-4;
  y -= 0.5 * z;
  return (x + y) + n * 0.693359375;
}

}  // namespace
