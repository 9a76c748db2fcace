/* Elementwise functions of kernels, for whole vectors and for scalars.
 *
 * Included as text into every generated kernel, after
 *
 *     FWP_DOUBLE                    0 or 1: the precision
 *     FWP_LANES                     lanes of a vector: 2, 4, 8 or 16
 *     typedef float|double real;
 *     typedef real vf __attribute__((vector_size(...)));
 *     typedef int32_t|int64_t vi    as wide, lane by lane, as vf
 *
 * and <stdint.h>.  C11 with the vector extensions of GCC (9 and later) and clang (11 and later); no libm, no intrinsics,
 * so that one text serves AVX-512, AVX2, SSE2 and NEON.
 *
 *     vf   fwp_NAME(vf)       real fwp_NAME1(real)
 *
 * exp expm1 log log1p tanh sigmoid log_sigmoid softplus erf gelu gelu_tanh silu sin cos sqrt rsqrt reciprocal
 * floor relu abs sign; with two arguments pow rem max min.
 * Further: fwp_splat, fwp_select, fwp_any, fwp_lanes_sum, fwp_lanes_max, fwp_lanes_min, fwp_reduce_lanes.
 *
 * Accuracy, against the exact value for the given argument and over all arguments, in units in the last place,
 * as seen at ten million points:
 *
 *               exp  expm1  log  log1p  tanh  sigmoid  softplus  log_sigmoid  silu  erf  sin, cos  pow
 *     float     1.1   1.7   0.9   0.9   2.5     2.3       2.3        2.3      3.2   3.1    2.2     1.2
 *     double    1.0   2.0   0.9   1.0   2.6     2.3       2.3        2.3      3.2   1.9    2.5     1.2
 *
 * gelu and gelu_tanh cancel for large negative arguments by definition: 2.1 ulp, or 2^-23 |x| (2^-52 |x|).
 * Denormal results of exp and what is made of it are zero, as all of them are while a kernel runs.
 * NaN gives NaN, also through max, min and relu.  The sign of a zero is not kept.
 *
 * Measured on one core of an AMD EPYC with AVX2 (Zen 3), gcc 12, in ns an element:
 *
 *                          exp   tanh  log   sigmoid  softplus  sin
 *     float,  32 bytes     0.50  0.85  1.1    0.70      1.1     0.60
 *     double, 32 bytes     1.5   2.2   2.5    2.0       3.7     1.4
 *     float,  16, SSE2     1.6   2.4   2.9    2.0       3.2     1.6
 *
 * # Design
 *
 * The compiler may reassociate: kernels need it for their sums.  Here it would undo rounding by a magic number,
 * reductions in several parts and error terms, so FWP_FENCE marks a value that must be rounded as written:
 * in GCC by an empty asm (its own builtin for this takes vectors apart), in clang by FWP_STRICT, function by function.
 *
 * Polynomials are minimax in the relative error of the whole function, by Remez's exchange in 50 digits;
 * the error behind each is that of the polynomial alone.
 */

#if defined(__AVX512F__)
#define FWP_REGISTER 64
#define FWP_HOLD "+v"
#elif defined(__AVX__)
#define FWP_REGISTER 32
#define FWP_HOLD "+x"
#elif defined(__SSE2__)
#define FWP_REGISTER 16
#define FWP_HOLD "+x"
#elif defined(__aarch64__)
#define FWP_REGISTER 16
#define FWP_HOLD "+w"
#else
#define FWP_REGISTER 0
#endif
#if FWP_LANES * (4 + 4 * FWP_DOUBLE) > FWP_REGISTER
#undef FWP_HOLD
#define FWP_HOLD "+m"
#endif
/* x, of which the compiler knows nothing. */
#define FWP_OPAQUE(x) __extension__({ vf fwp_held = (x); __asm__("" : FWP_HOLD(fwp_held)); fwp_held; })

#if defined(__clang__)
#define FWP_STRICT _Pragma("clang fp reassociate(off)")
#define FWP_FENCE(x) (x)
#define FWP_UNROLL _Pragma("unroll")
#define FWP_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FWP_STRICT
#define FWP_FENCE(x) FWP_OPAQUE(x)
#define FWP_UNROLL _Pragma("GCC unroll 32")
#define FWP_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

#define FWP_INLINE static inline __attribute__((always_inline, unused))

#if FWP_DOUBLE
typedef uint64_t fwp_vu __attribute__((vector_size(FWP_LANES * 8)));
typedef uint64_t fwp_bits;
#define FWP_C(single, twice) ((real)(twice))
#define FWP_MANTISSA 52
#define FWP_BIAS 1023
#define FWP_SIGN (UINT64_C(1) << 63)
#define FWP_SQRT_HALF_BITS UINT64_C(0x3fe6a09e667f3bcd)
#define FWP_LOW_HALF UINT64_C(0x7ffffff) /* half of the mantissa: the product of two numbers without it is exact */
#else
typedef uint32_t fwp_vu __attribute__((vector_size(FWP_LANES * 4)));
typedef uint32_t fwp_bits;
#define FWP_C(single, twice) ((real)(single))
#define FWP_MANTISSA 23
#define FWP_BIAS 127
#define FWP_SIGN (UINT32_C(1) << 31)
#define FWP_SQRT_HALF_BITS UINT32_C(0x3f3504f3)
#define FWP_LOW_HALF UINT32_C(0xfff)
#endif
#define FWP_ONE_BITS ((fwp_bits)FWP_BIAS << FWP_MANTISSA)
#define FWP_INF ((real)__builtin_inf())
#define FWP_NAN ((real)__builtin_nan(""))

/* ---- lanes ---- */

FWP_INLINE vf fwp_splat(real x) { return x - (vf){0}; }

/* a where the mask is all ones, b where it is 0. */
FWP_INLINE vf fwp_select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

FWP_INLINE vf fwp_select_constant(vi mask, real a, vf b) { return fwp_select(mask, fwp_splat(a), b); }

#if FWP_LANES == 2
#define FWP_EACH(f, d) f(0, d), f(1, d)
#elif FWP_LANES == 4
#define FWP_EACH(f, d) f(0, d), f(1, d), f(2, d), f(3, d)
#elif FWP_LANES == 8
#define FWP_EACH(f, d) f(0, d), f(1, d), f(2, d), f(3, d), f(4, d), f(5, d), f(6, d), f(7, d)
#elif FWP_LANES == 16
#define FWP_EACH(f, d) \
    f(0, d), f(1, d), f(2, d), f(3, d), f(4, d), f(5, d), f(6, d), f(7, d), \
    f(8, d), f(9, d), f(10, d), f(11, d), f(12, d), f(13, d), f(14, d), f(15, d)
#else
#error "FWP_LANES must be 2, 4, 8 or 16"
#endif
#define FWP_ACROSS(j, d) ((j) ^ (d))
/* Lanes in 16 bytes, within which processors shuffle fastest. */
#define FWP_NEAR (FWP_DOUBLE || FWP_LANES < 4 ? 2 : 4)
/* What has been summed over d lanes: neighbours within such a piece, and then whole pieces. */
#define FWP_GROUP(d) ((d) < FWP_NEAR ? 1 : FWP_NEAR)
#define FWP_SPAN(d) ((d) < FWP_NEAR ? FWP_NEAR : FWP_LANES)
/* Lane j of what comes from group `from` of its span, where those of a second vector follow those of the first. */
#define FWP_DEALT(j, g, w, from) \
    ((j) / (w) * (w) + (from) % ((w) / (g)) * (g) + (j) % (g) + ((from) < (w) / (g) ? 0 : FWP_LANES))
#define FWP_EVEN(j, d) FWP_DEALT(j, FWP_GROUP(d), FWP_SPAN(d), (j) % FWP_SPAN(d) / FWP_GROUP(d) * 2)
#define FWP_ODD(j, d) FWP_DEALT(j, FWP_GROUP(d), FWP_SPAN(d), (j) % FWP_SPAN(d) / FWP_GROUP(d) * 2 + 1)

/* The lane whose number differs by the bit d. */
#define FWP_SWAPPED(x, d) FWP_SHUFFLE(x, x, FWP_EACH(FWP_ACROSS, d))
/* Neighbours' sums: those of a, then those of b, in every span. */
#define FWP_JOINED(a, b, d) (FWP_SHUFFLE(a, b, FWP_EACH(FWP_EVEN, d)) + FWP_SHUFFLE(a, b, FWP_EACH(FWP_ODD, d)))

/* A function of every lane's value, by halving. */
#if FWP_LANES == 2
#define FWP_HALVING(x, f) x = f(x, FWP_SWAPPED(x, 1))
#elif FWP_LANES == 4
#define FWP_HALVING(x, f) x = f(x, FWP_SWAPPED(x, 2)), x = f(x, FWP_SWAPPED(x, 1))
#elif FWP_LANES == 8
#define FWP_HALVING(x, f) x = f(x, FWP_SWAPPED(x, 4)), x = f(x, FWP_SWAPPED(x, 2)), x = f(x, FWP_SWAPPED(x, 1))
#else
#define FWP_HALVING(x, f) \
    x = f(x, FWP_SWAPPED(x, 8)), x = f(x, FWP_SWAPPED(x, 4)), x = f(x, FWP_SWAPPED(x, 2)), x = f(x, FWP_SWAPPED(x, 1))
#endif

FWP_INLINE vf fwp_max(vf a, vf b) { return fwp_select((vi)(a > b) | (vi)(a != a), a, b); }
FWP_INLINE vf fwp_min(vf a, vf b) { return fwp_select((vi)(a < b) | (vi)(a != a), a, b); }

#define FWP_PLUS(a, b) ((a) + (b))
#define FWP_OR(a, b) ((a) | (b))
FWP_INLINE real fwp_lanes_sum(vf x) { FWP_HALVING(x, FWP_PLUS); return x[0]; }
FWP_INLINE real fwp_lanes_max(vf x) { FWP_HALVING(x, fwp_max); return x[0]; }
FWP_INLINE real fwp_lanes_min(vf x) { FWP_HALVING(x, fwp_min); return x[0]; }

/* Whether the mask is not 0 in some lane. */
FWP_INLINE int fwp_any(vi mask) { FWP_HALVING(mask, FWP_OR); return mask[0] != 0; }

/* Lane j of the result is the sum of all lanes of x[j]: a transposition folded into its sums, FWP_LANES - 1 additions. */
FWP_INLINE vf fwp_reduce_lanes(const vf x[FWP_LANES])
{
    vf y[FWP_LANES / 2];
    FWP_UNROLL for (int i = 0; i < FWP_LANES / 2; i++) y[i] = FWP_JOINED(x[2 * i], x[2 * i + 1], 1);
#if FWP_LANES >= 4
    FWP_UNROLL for (int i = 0; i < FWP_LANES / 4; i++) y[i] = FWP_JOINED(y[2 * i], y[2 * i + 1], 2);
#endif
#if FWP_LANES >= 8
    FWP_UNROLL for (int i = 0; i < FWP_LANES / 8; i++) y[i] = FWP_JOINED(y[2 * i], y[2 * i + 1], 4);
#endif
#if FWP_LANES >= 16
    y[0] = FWP_JOINED(y[0], y[1], 8);
#endif
    return y[0];
}

/* ---- simple functions ---- */

FWP_INLINE vf fwp_abs(vf x) { return (vf)((fwp_vu)x & ~FWP_SIGN); }

/* The magnitude of a with the sign of b. */
FWP_INLINE vf fwp_copy_sign(vf a, vf b) { return (vf)(((fwp_vu)a & ~FWP_SIGN) | ((fwp_vu)b & FWP_SIGN)); }

FWP_INLINE vf fwp_relu(vf x) { return (vf)(~(vi)(x < 0) & (vi)x); }

FWP_INLINE vf fwp_sign(vf x)
{
    return fwp_select((vi)(x == 0) | (vi)(x != x), x, fwp_copy_sign(fwp_splat(1), x));
}

/* Lane by lane, which compilers join again. */
FWP_INLINE vf fwp_sqrt(vf x)
{
    vf y = x;
    FWP_UNROLL for (int i = 0; i < FWP_LANES; i++)
#if FWP_DOUBLE
        y[i] = __builtin_sqrt(x[i]);
#else
        y[i] = __builtin_sqrtf(x[i]);
#endif
    return y;
}

FWP_INLINE vf fwp_reciprocal(vf x) { return (real)1 / x; }

FWP_INLINE vf fwp_rsqrt(vf x)
{
    /* Seen together, the two become an estimate that is wrong at 0. */
    return (real)1 / FWP_OPAQUE(fwp_sqrt(x));
}

FWP_INLINE vf fwp_floor(vf x)
{
    FWP_STRICT
    /* Numbers beyond have no fraction; adding this one rounds to an integer. */
    const real whole = FWP_C(0x1p23, 0x1p52);
    const vf a = fwp_abs(x);
    vf y = FWP_FENCE(a + whole);
    y = FWP_FENCE(y - whole);
    y = fwp_copy_sign(y, x);
    y -= (vf)((vi)(y > x) & (vi)fwp_splat(1));
    return fwp_select((vi)(a < whole), y, x);
}

/* a - b floor(a / b), with the sign of b. */
FWP_INLINE vf fwp_rem(vf a, vf b)
{
    FWP_STRICT
    const vf q = fwp_floor(FWP_FENCE(a / b));
    const vf r = FWP_FENCE(a - FWP_FENCE(q * b));
    /* A division by a reciprocal may miss a whole quotient by one. */
    const vf up = FWP_FENCE(a - FWP_FENCE((q + 1) * b)), down = FWP_FENCE(a - FWP_FENCE((q - 1) * b));
    const vi positive = (vi)(b > 0);
    const vi missed = (positive & (vi)(up >= 0)) | (~positive & (vi)(up <= 0));
    const vi passed = (positive & (vi)(r < 0)) | (~positive & (vi)(r > 0));
    return fwp_select(missed, up, fwp_select(passed, down, r));
}

/* ---- exp and its kin ---- */

/* c[0] + c[1] x + ... + c[n - 1] x^(n - 1) in two chains, n >= 3. */
FWP_INLINE vf fwp_polynomial(vf x, const real *c, int n)
{
    const vf xx = x * x;
    const int last = (n - 1) & ~1, other = (n - 2) | 1;
    vf even = fwp_splat(c[last]), odd = fwp_splat(c[other]);
    FWP_UNROLL for (int i = last - 2; i >= 0; i -= 2) even = even * xx + c[i];
    FWP_UNROLL for (int i = other - 2; i >= 1; i -= 2) odd = odd * xx + c[i];
    return odd * x + even;
}
#define FWP_POLYNOMIAL(x, c) fwp_polynomial(x, c, (int)(sizeof(c) / sizeof *(c)))

/* x rounded to an integer n, which is returned; in `power` n where a number has its exponent, of which what is too large falls away. */
FWP_INLINE vf fwp_round(vf x, fwp_vu *power)
{
    FWP_STRICT
    const real magic = FWP_C(0x1.8p23, 0x1.8p52);
    const vf t = FWP_FENCE(x + magic);
    *power = (fwp_vu)t << FWP_MANTISSA;
    return FWP_FENCE(t - magic);
}

/* 2^(n + offset), for results in the range of normal numbers. */
FWP_INLINE vf fwp_power_of_two(fwp_vu power, int offset)
{
    return (vf)(power + ((fwp_bits)(FWP_BIAS + offset) << FWP_MANTISSA));
}

/* (expm1(x) - x) / x^2 for |x| <= log(2) / 2. */
FWP_INLINE vf fwp_exp_tail(vf x)
{
#if FWP_DOUBLE /* 2^-61.7 */
    static const real c[] = {0.5, 0.16666666666666677, 0.041666666666666699, 0.0083333333333214694, 0.0013888888888866568,
        0.00019841269886599811, 2.4801587361125827e-05, 2.7557243677015365e-06, 2.7557242252988012e-07,
        2.5109239867625639e-08, 2.0924604325015101e-09};
#else /* 2^-26.1 */
    static const real c[] = {0.500000006f, 0.166665422f, 0.0416662795f, 0.00836669811f, 0.00139466455f};
#endif
    return FWP_POLYNOMIAL(x, c);
}

/* x = n log(2) + r; n in `power`. */
FWP_INLINE vf fwp_reduced_exp(vf x, fwp_vu *power)
{
    FWP_STRICT
    const vf n = fwp_round(x * FWP_C(1.44269502f, 1.4426950408889634), power);
    /* n times the first part is exact. */
    const vf r = FWP_FENCE(x - n * FWP_C(0.69140625f, 0x1.62e42feep-1));
    return FWP_FENCE(r - n * FWP_C(0.00174093056f, 1.9082149292705877e-10));
}

/* exp(r) for |r| <= log(2) / 2. */
FWP_INLINE vf fwp_exp_rest(vf r) { return FWP_FENCE(r + r * r * fwp_exp_tail(r)) + 1; }

/* p 2^n by its exponent alone, which has room for every normal result: 0 where it is below, `most` where it is above. */
FWP_INLINE vf fwp_scaled(vf p, fwp_vu power, vi below, vi above, vf most)
{
    return (vf)(~below & (vi)fwp_select(above, most, (vf)((fwp_vu)p + power)));
}

FWP_INLINE vf fwp_within(vf x, real low, real high)
{
    x = fwp_select_constant((vi)(x < low), low, x);
    return fwp_select_constant((vi)(x > high), high, x);
}

/* The least and the largest argument of exp whose result is a normal number. */
#define FWP_EXP_LEAST FWP_C(-87.33654022f, -708.3964185322641)
#define FWP_EXP_MOST FWP_C(88.72283173f, 709.782712893384)

FWP_INLINE vf fwp_exp(vf x)
{
    fwp_vu power;
    const vf p = fwp_exp_rest(fwp_reduced_exp(x, &power));
    /* NaN is neither below nor at most anything. */
    return fwp_scaled(p, power, (vi)(x < FWP_EXP_LEAST), ~(vi)(x <= FWP_EXP_MOST), x + FWP_INF);
}

/* exp for arguments whose result is a normal number, and NaN. */
FWP_INLINE vf fwp_exp_normal(vf x)
{
    fwp_vu power;
    const vf p = fwp_exp_rest(fwp_reduced_exp(x, &power));
    return p * fwp_power_of_two(power, 0);
}

/* exp(-|x|) */
FWP_INLINE vf fwp_exp_decay(vf x)
{
    const vf a = -fwp_abs(x);
    return (vf)(~(vi)(a < FWP_EXP_LEAST) & (vi)fwp_exp_normal(a));
}

FWP_INLINE vf fwp_expm1(vf x)
{
    FWP_STRICT
    fwp_vu power;
    const vf r = fwp_reduced_exp(fwp_within(x, FWP_C(-20, -40), FWP_C(89, 710)), &power);
    const vf p = FWP_FENCE(r + r * r * fwp_exp_tail(r));
    /* Half of it: 2^n itself may overflow. */
    const vf s = fwp_power_of_two(power, -1);
    const vf half = FWP_FENCE(s * p + FWP_FENCE(s - (real)0.5));
    return half + half;
}

FWP_INLINE vf fwp_tanh(vf x)
{
    FWP_STRICT
    /* (e^(2|x|) - 1) / (e^(2|x|) + 1), 1 beyond the bound. */
    const real bound = FWP_C(10, 20);
    const vf a = fwp_abs(x);
    fwp_vu power;
    const vf r = fwp_reduced_exp(2 * fwp_select_constant((vi)(a > bound), bound, a), &power);
    const vf p = FWP_FENCE(r + r * r * fwp_exp_tail(r));
    const vf s = fwp_power_of_two(power, 0);
    const vf e = FWP_FENCE(s * p + FWP_FENCE(s - 1));
    return fwp_copy_sign(e / FWP_FENCE(e + 2), x);
}

FWP_INLINE vf fwp_sigmoid(vf x)
{
    const vf z = fwp_exp_decay(x);
    return fwp_select((vi)(x < 0), z, fwp_splat(1)) / FWP_FENCE(1 + z);
}

FWP_INLINE vf fwp_silu(vf x) { return x * fwp_sigmoid(x); }

/* ---- log and its kin ---- */

/* log(1 + f) - f for f in sqrt(1/2) - 1 .. sqrt(2) - 1. */
FWP_INLINE vf fwp_log_tail(vf f)
{
#if FWP_DOUBLE /* with s = f / (2 + f): log(1 + f) = 2 s + s^3 P(s^2); 2^-58.5 */
    static const real c[] = {0.66666666666667351, 0.39999999999407698, 0.28571428744101846, 0.22222198382033301,
        0.18183574998905422, 0.15313759673278571, 0.1479902967788797};
    const vf s = f / (2 + f), z = s * s;
    return s * (z * FWP_POLYNOMIAL(z, c) - f);
#else /* 2^-30.3 */
    static const real c[] = {0.3333331f, -0.24999985f, 0.20002261f, -0.166693648f, 0.142179264f, -0.123817813f,
        0.118765191f, -0.118075353f, 0.0692835897f};
    return f * f * (f * FWP_POLYNOMIAL(f, c) - (real)0.5);
#endif
}

/* x = m 2^e with m in sqrt(1/2) .. sqrt(2), for positive normal x. */
FWP_INLINE vf fwp_split(vf x, vf *e)
{
    FWP_STRICT
    const fwp_vu biased = ((fwp_vu)x + (FWP_ONE_BITS - FWP_SQRT_HALF_BITS)) >> FWP_MANTISSA;
    /* An integer below the mantissa of a power of two is a float without a conversion. */
    const real base = FWP_C(0x1p23, 0x1p52);
    const fwp_bits base_bits = (fwp_bits)(FWP_BIAS + FWP_MANTISSA) << FWP_MANTISSA;
    *e = FWP_FENCE((vf)(biased | base_bits) - (base + FWP_BIAS));
    return (vf)((fwp_vu)x - ((biased - FWP_BIAS) << FWP_MANTISSA));
}

/* e log(2) + log(1 + f) + c */
FWP_INLINE vf fwp_log_sum(vf e, vf f, vf c)
{
    FWP_STRICT
    const vf low = FWP_FENCE(fwp_log_tail(f) + FWP_FENCE(e * FWP_C(0.00174093056f, 1.9082149292705877e-10) + c));
    return FWP_FENCE(e * FWP_C(0.69140625f, 0x1.62e42feep-1)) + FWP_FENCE(f + low);
}

/* Denormal x made normal, the exponent to be added in `e`. */
FWP_INLINE vf fwp_normal(vf x, vf *e)
{
    const vi denormal = (vi)(x < FWP_C(0x1p-126, 0x1p-1022));
    *e = (vf)(denormal & (vi)fwp_splat(FWP_C(-24, -54)));
    return fwp_select(denormal, x * FWP_C(0x1p24, 0x1p54), x);
}

FWP_INLINE vf fwp_log(vf x)
{
    vf e, more;
    const vf m = fwp_split(fwp_normal(x, &more), &e);
    vf y = fwp_log_sum(e + more, FWP_FENCE(m - 1), fwp_splat(0));
    y = fwp_select_constant((vi)(x == 0), -FWP_INF, fwp_select_constant((vi)(x > 0), 0, fwp_splat(FWP_NAN)) + y);
    return fwp_select((vi)(x == FWP_INF), x, y);
}

FWP_INLINE vf fwp_log1p(vf x)
{
    FWP_STRICT
    const vf u = FWP_FENCE(1 + x);
    /* What the sum lost. */
    const vf of_x = FWP_FENCE(u - 1), of_one = FWP_FENCE(u - of_x);
    const vf lost = FWP_FENCE(1 - of_one) + FWP_FENCE(x - of_x);
    vf e;
    const vf m = fwp_split(u, &e);
    const vi near = (vi)(e == 0);
    const vf f = fwp_select(near, x, FWP_FENCE(m - 1));
    const vf c = (vf)(~near & (vi)(lost / u));
    vf y = fwp_log_sum(e, f, c);
    y = fwp_select_constant((vi)(x == -1), -FWP_INF, fwp_select_constant((vi)(x > -1), 0, fwp_splat(FWP_NAN)) + y);
    return fwp_select((vi)(x == FWP_INF), x, y);
}

/* log1p(exp(-|x|)) */
FWP_INLINE vf fwp_softplus_tail(vf x)
{
    FWP_STRICT
    const vf z = fwp_exp_decay(x);
    /* As in fwp_log_tail, s up to 1/3. */
#if FWP_DOUBLE /* 2^-58.4 */
    static const real c[] = {0.66666666666666308, 0.4000000000015721, 0.28571428547857025, 0.22222223969567143,
        0.18181743929988514, 0.15386559825829246, 0.13300974760370954, 0.12106077587371133, 0.083401372075953453,
        0.17018512457415319};
#else /* 2^-26.7 */
    static const real c[] = {0.666664131f, 0.400216986f, 0.279991473f, 0.280244324f};
#endif
    const vf s = z / FWP_FENCE(2 + z), y = s * s;
    return z + s * (y * FWP_POLYNOMIAL(y, c) - z);
}

FWP_INLINE vf fwp_softplus(vf x) { return fwp_select((vi)(x > 0), x, fwp_splat(0)) + fwp_softplus_tail(x); }

FWP_INLINE vf fwp_log_sigmoid(vf x) { return fwp_select((vi)(x < 0), x, fwp_splat(0)) - fwp_softplus_tail(x); }

/* ---- erf and gelu ---- */

/* erf(a) and 1 - erf(a) for a >= 0. */
FWP_INLINE vf fwp_erf_of_positive(vf a, vf *complement)
{
    FWP_STRICT
    /* Below 1 a polynomial; above, the complement as exp of a polynomial, weighted by how much of it is left. */
#if FWP_DOUBLE /* 2^-62.8; 2^-59.5 */
    static const real small[] = {1.1283791670955126, -0.37612638903183748, 0.11283791670954885, -0.026866170645077871,
        0.0052239776248283942, -0.00085483269814237749, 0.00012055331132903042, -1.4925595771173965e-05,
        1.6461008465483836e-06, -1.6350396129041115e-07, 1.4660328313849696e-08, -1.1374954923180014e-09,
        5.9606851202004433e-11};
    static const real large[] = {1.7959816720001612e-07, 1.1283773294815889, 0.6366284879201306, 0.10274725494583224,
        -0.019078160458964346, -0.00028048198721780443, 0.0017689935403084034, -0.00064116669726061728,
        4.4818459213348442e-05, 7.0368741251212105e-05, -4.5038250731139658e-05, 1.651423008622187e-05,
        -4.3271212157090284e-06, 8.5059181469849535e-07, -1.2570803878922248e-07, 1.3627108904814348e-08,
        -1.0257376686073366e-09, 4.796242514814415e-11, -1.0496737503182176e-12};
#else /* 2^-29.7; 2^-35.5 */
    static const real small[] = {1.12837917f, -0.376126271f, 0.112836002f, -0.0268544447f, 0.00518953545f, -0.00080208421f,
        7.88912193e-05f};
    static const real large[] = {-0.000188468408f, 1.12958031f, 0.633216393f, 0.108422103f, -0.0252103417f, 0.00420528538f,
        -0.000441472764f, 2.16976227e-05f};
#endif
    const real end = FWP_C(4, 6);
    const vf b = fwp_select_constant((vi)(a > end), end, a);
    const vf near = b * FWP_POLYNOMIAL(b * b, small);
    const vf rest = (vf)(~(vi)(a > end) & (vi)fwp_exp_normal(-FWP_POLYNOMIAL(b, large)));
    const vi below = (vi)(a < 1);
    *complement = fwp_select(below, 1 - near, rest);
    return fwp_select(below, near, 1 - rest);
}

FWP_INLINE vf fwp_erf(vf x)
{
    vf complement;
    return fwp_copy_sign(fwp_erf_of_positive(fwp_abs(x), &complement), x);
}

/* x (1 + erf(x / sqrt(2))) / 2 */
FWP_INLINE vf fwp_gelu(vf x)
{
    vf complement;
    const vf y = fwp_erf_of_positive(fwp_abs(x) * FWP_C(0.707106781f, 0.70710678118654752), &complement);
    return (real)0.5 * x * fwp_select((vi)(x < 0), complement, 1 + y);
}

/* x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x sigmoid(2 u). */
FWP_INLINE vf fwp_gelu_tanh(vf x)
{
    return x * fwp_sigmoid(x * (real)1.5957691216057308 * (1 + x * x * (real)0.044715));
}

/* ---- sin and cos ---- */

/* Where the reduction in parts ends. */
#define FWP_MANY_TURNS FWP_C(6000, 1e6)

/* x less its multiple of pi/2, the multiple's last two bits in `quarter`, for large x of one lane:
 * as a product of integers with as many bits of 2/pi as x reaches, of which whole turns fall away. */
__attribute__((noinline, unused)) static real fwp_reduced_large(real given, fwp_bits *quarter)
{
    static const uint64_t two_over_pi[] = {0, 0xa2f9836e4e441529, 0xfc2757d1f534ddc0, 0xdb6295993c439041,
        0xfe5163abdebbc561, 0xb7246e3a424dd2e0, 0x06492eea09d1921c, 0xfe1deb1cb129a73e, 0xe88235f52ebb4484,
        0xe99c7026b45f7e41, 0x3991d639835339f4, 0x9c845f8bbdf9283b, 0x1ff897ffde05980f, 0xef2f118b5a0a6d1f,
        0x6d367ecf27cb09b7, 0x4f463f669e5fea2d, 0x7527bac7ebe5f17b, 0x3d0739f78a5292ea, 0x6bfb5fb11f8d5d08,
        0x56033046fc7b6bab, 0xf0cfbc209af4361d};
    const double x = given;
    uint64_t bits;
    __builtin_memcpy(&bits, &x, 8);
    const uint64_t mantissa = (bits & ((UINT64_C(1) << 52) - 1)) | UINT64_C(1) << 52;
    const int exponent = (int)(bits >> 52 & 2047) - 1075; /* x = mantissa 2^exponent */
    /* Bits of 2/pi that weigh 2 and less times the mantissa's last: from `first` on, 192 of them. 64 zeros stand before. */
    const int first = exponent + 62;
    const int word = first / 64, shift = first % 64;
    uint64_t w[3];
    for (int i = 0; i < 3; i++)
        w[i] = shift ? two_over_pi[word + i] << shift | two_over_pi[word + i + 1] >> (64 - shift) : two_over_pi[word + i];
    /* The product's last 192 bits: two of the quarter, then the fraction. */
    const unsigned __int128 low = (unsigned __int128)mantissa * w[2];
    const unsigned __int128 middle = (unsigned __int128)mantissa * w[1] + (uint64_t)(low >> 64);
    const uint64_t high = mantissa * w[0] + (uint64_t)(middle >> 64);
    const unsigned __int128 all = (unsigned __int128)high << 64 | (uint64_t)middle;
    uint64_t n = (uint64_t)(all >> 126);
    unsigned __int128 fraction = all << 2;
    const int over = (int)(fraction >> 127);
    if (over) { fraction = -fraction; n++; }
    /* Its leading 64 bits, with their exponent. */
    uint64_t top = (uint64_t)(fraction >> 64), next = (uint64_t)fraction;
    int zeros = 0;
    if (top == 0) { top = next; next = 0; zeros = 64; }
    if (top == 0) { *quarter = (fwp_bits)(n & 3); return 0; }
    const int lead = __builtin_clzll(top);
    if (lead) top = top << lead | next >> (64 - lead);
    zeros += lead;
    double scale;
    const uint64_t scale_bits = (uint64_t)(1023 - 64 - zeros) << 52;
    __builtin_memcpy(&scale, &scale_bits, 8);
    double r = (double)top * scale * 1.5707963267948966;
    if (over) r = -r;
    if (x < 0) { r = -r; n = -n; }
    *quarter = (fwp_bits)(n & 3);
    return (real)r;
}

/* sin(x + extra pi/2) */
FWP_INLINE vf fwp_sine(vf x, fwp_bits extra)
{
    FWP_STRICT
    /* Multiples of pi/2 up to 2^12 (2^20) times all parts but the last are exact. */
    const vf near = x * FWP_C(0.636619772f, 0.63661977236758138);
    const real magic = FWP_C(0x1.8p23, 0x1.8p52);
    const vf t = FWP_FENCE(near + magic);
    const vf n = FWP_FENCE(t - magic);
    fwp_vu quarter = (fwp_vu)t;
#if FWP_DOUBLE
    vf r = FWP_FENCE(x - n * 1.5707963267341256);
    r = FWP_FENCE(r - n * 6.077100506303966e-11);
    r = FWP_FENCE(r - n * 2.0222662487111665e-21);
    r = FWP_FENCE(r - n * 8.4784276603688996e-32);
#else
    vf r = FWP_FENCE(x - n * 1.5703125f);
    r = FWP_FENCE(r - n * 0.000483751297f);
    r = FWP_FENCE(r - n * 7.54953362e-08f);
    r = FWP_FENCE(r - n * 2.56328292e-12f);
    r = FWP_FENCE(r - n * 6.123234e-17f);
#endif
    const vf a = fwp_abs(x);
    const vi far = (vi)(a > FWP_MANY_TURNS) & (vi)(a < FWP_INF);
    if (__builtin_expect(fwp_any(far), 0))
        for (int i = 0; i < FWP_LANES; i++)
            if (far[i]) {
                fwp_bits q = 0;
                r[i] = fwp_reduced_large(x[i], &q);
                quarter[i] = q;
            }
#if FWP_DOUBLE /* 2^-58.0; 2^-64.2 */
    static const real odd[] = {-0.16666666666666632, 0.0083333333333222188, -0.00019841269829641941, 2.7557313631406194e-06,
        -2.5050748226905085e-08, 1.5896200648703114e-10};
    static const real even[] = {0.041666666666666602, -0.0013888888888873962, 2.4801587289362082e-05,
        -2.7557314313235228e-07, 2.0875717449606393e-09, -1.1359323212299858e-11};
#else /* 2^-28.0; 2^-33.3 */
    static const real odd[] = {-0.166666548f, 0.0083321692f, -0.00019516041f};
    static const real even[] = {0.0416666467f, -0.00138873566f, 2.44371284e-05f};
#endif
    const vf z = r * r;
    const vf sine = r + r * z * FWP_POLYNOMIAL(z, odd);
    const vf cosine = FWP_FENCE(1 - (real)0.5 * z) + z * z * FWP_POLYNOMIAL(z, even);
    quarter += extra;
    const vf y = fwp_select((vi)(-(quarter & 1)), cosine, sine);
    return (vf)((fwp_vu)y ^ (quarter & 2) << (sizeof(real) * 8 - 2));
}

FWP_INLINE vf fwp_sin(vf x) { return fwp_sine(x, 0); }
FWP_INLINE vf fwp_cos(vf x) { return fwp_sine(x, 1); }

/* ---- pow: log and product in two words, exp of their sum ---- */

/* high + low, the second at most half an ulp of the first. */
typedef struct { vf high, low; } fwp_two;

/* |a| >= |b| or a = 0 */
FWP_INLINE fwp_two fwp_two_of(vf a, vf b)
{
    FWP_STRICT
    const vf high = FWP_FENCE(a + b);
    const vf taken = FWP_FENCE(high - a);
    return (fwp_two){high, FWP_FENCE(b - taken)};
}

FWP_INLINE fwp_two fwp_two_product(fwp_two a, fwp_two b)
{
    FWP_STRICT
    const vf p = FWP_FENCE(a.high * b.high);
    const vf ah = (vf)((fwp_vu)a.high & ~FWP_LOW_HALF), al = FWP_FENCE(a.high - ah);
    const vf bh = (vf)((fwp_vu)b.high & ~FWP_LOW_HALF), bl = FWP_FENCE(b.high - bh);
    vf error = FWP_FENCE(FWP_FENCE(ah * bh) - p);
    error = FWP_FENCE(error + FWP_FENCE(ah * bl));
    error = FWP_FENCE(error + FWP_FENCE(al * bh));
    error = FWP_FENCE(error + FWP_FENCE(al * bl));
    return fwp_two_of(p, FWP_FENCE(error + FWP_FENCE(a.high * b.low + a.low * b.high)));
}

/* log2 of positive x that is not infinite */
FWP_INLINE fwp_two fwp_log2_two(vf x)
{
    FWP_STRICT
    vf e, more;
    const vf m = fwp_split(fwp_normal(x, &more), &e);
    const vf f = FWP_FENCE(m - 1);
    /* s = f / (2 + f), its second word from what the first leaves. */
    const fwp_two d = fwp_two_of(fwp_splat(2), f);
    const vf s = FWP_FENCE(f / d.high);
    const fwp_two back = fwp_two_product((fwp_two){s, fwp_splat(0)}, d);
    const vf left = FWP_FENCE(FWP_FENCE(f - back.high) - back.low);
    const fwp_two ss = fwp_two_of(s, FWP_FENCE(left / d.high));
    /* log(1 + f) = 2 s (1 + s^2 / 3 + s^4 P(s^2)) */
#if FWP_DOUBLE /* 2^-66.3 */
    static const real c[] = {0.20000000000001142, 0.14285714285042259, 0.11111111261379757, 0.090908920536028434,
        0.076933848971422233, 0.066282585358749063, 0.065996045320457622};
#else /* 2^-36.8 */
    static const real c[] = {0.200000765f, 0.142735187f, 0.117104909f};
#endif
    const fwp_two z = fwp_two_product(ss, ss);
    const fwp_two third = {fwp_splat(FWP_C(0.333333343f, 0.33333333333333333)), fwp_splat(FWP_C(-9.93410746e-09f, 1.8503717077085941e-17))};
    const fwp_two w = fwp_two_product(z, third);
    const fwp_two v = fwp_two_of(w.high, FWP_FENCE(w.low + z.high * z.high * FWP_POLYNOMIAL(z.high, c)));
    const fwp_two sv = fwp_two_product(ss, v);
    const fwp_two t = fwp_two_of(ss.high, sv.high);
    const fwp_two l = fwp_two_of(t.high, FWP_FENCE(t.low + FWP_FENCE(ss.low + sv.low)));
    /* 2 / log(2) */
    const fwp_two by = {fwp_splat(FWP_C(2.88539004f, 2.8853900817779268)), fwp_splat(FWP_C(3.85192598e-08f, 4.0710547481862066e-17))};
    const fwp_two y = fwp_two_product(l, by);
    const fwp_two sum = fwp_two_of(e + more, y.high);
    return fwp_two_of(sum.high, FWP_FENCE(sum.low + y.low));
}

FWP_INLINE vf fwp_pow(vf a, vf b)
{
    FWP_STRICT
    const vf x = fwp_abs(a);
    const fwp_two l = fwp_log2_two(x);
    /* Of a product beyond every exponent, and of infinities, only the sign is of interest. */
    const vf infinite = fwp_splat(FWP_INF);
    vf first = fwp_select((vi)(x == FWP_INF), infinite, l.high);
    first = fwp_select((vi)(x == 0), -infinite, first);
    first = FWP_FENCE(first * b);
    const real bound = FWP_C(200, 1200);
    const vi far = (vi)(fwp_abs(first) > bound);
    const fwp_two product = fwp_two_product(l, (fwp_two){b, fwp_splat(0)});
    const vf high = fwp_select(far, fwp_copy_sign(fwp_splat(bound), first), product.high);
    const vf low = (vf)(~far & (vi)product.low);
    fwp_vu power;
    const vf n = fwp_round(high, &power);
    const vf r = FWP_FENCE(FWP_FENCE(high - n) + low) * FWP_C(0.693147182f, 0.69314718055994531);
    const vf p = fwp_exp_rest(r);
    /* Of the largest and the least exponent there is half a number. */
    const real most = FWP_C(128, 1024), least = FWP_C(-126, -1022);
    const vi below = (vi)(n < least) | ((vi)(n == least) & (vi)(p < 1));
    const vi above = (vi)(n > most) | ((vi)(n == most) & (vi)(p >= 1));
    vf y = fwp_scaled(p, power, below, above, infinite);
    /* NaN of either; a negative base is defined for whole exponents. */
    y = fwp_select((vi)(x != x) | (vi)(b != b), x + b, y);
    const vf half = (real)0.5 * b;
    const vi whole = (vi)(fwp_floor(b) == b);
    const vi odd = whole & (vi)(fwp_floor(half) != half) & (vi)(fwp_abs(b) < FWP_INF);
    const vi negative = (vi)(a < 0);
    y = fwp_select(negative & odd, -y, y);
    y = fwp_select_constant(negative & ~whole & (vi)(x < FWP_INF), FWP_NAN, y);
    return fwp_select_constant((vi)(b == 0) | (vi)(a == 1) | ((vi)(a == -1) & (vi)(fwp_abs(b) == FWP_INF)), 1, y);
}

/* ---- scalars ---- */

#define FWP_SCALAR(name) \
    FWP_INLINE real fwp_##name##1(real x) { const vf y = fwp_##name(fwp_splat(x)); return y[0]; }
#define FWP_SCALAR_OF_TWO(name) \
    FWP_INLINE real fwp_##name##1(real a, real b) { const vf y = fwp_##name(fwp_splat(a), fwp_splat(b)); return y[0]; }
FWP_SCALAR(exp)
FWP_SCALAR(expm1)
FWP_SCALAR(log)
FWP_SCALAR(log1p)
FWP_SCALAR(tanh)
FWP_SCALAR(sigmoid)
FWP_SCALAR(log_sigmoid)
FWP_SCALAR(softplus)
FWP_SCALAR(erf)
FWP_SCALAR(gelu)
FWP_SCALAR(gelu_tanh)
FWP_SCALAR(silu)
FWP_SCALAR(sin)
FWP_SCALAR(cos)
FWP_SCALAR_OF_TWO(pow)
FWP_SCALAR_OF_TWO(rem)
FWP_INLINE real fwp_sqrt1(real x) { return FWP_DOUBLE ? (real)__builtin_sqrt(x) : (real)__builtin_sqrtf((float)x); }
FWP_SCALAR(rsqrt)
FWP_INLINE real fwp_reciprocal1(real x) { return 1 / x; }
FWP_SCALAR(floor)
FWP_INLINE real fwp_relu1(real x) { return x < 0 ? 0 : x; }
FWP_INLINE real fwp_max1(real a, real b) { return a != a || a > b ? a : b; }
FWP_INLINE real fwp_min1(real a, real b) { return a != a || a < b ? a : b; }
FWP_INLINE real fwp_abs1(real x) { return FWP_DOUBLE ? (real)__builtin_fabs(x) : (real)__builtin_fabsf((float)x); }
FWP_INLINE real fwp_sign1(real x) { return x > 0 ? 1 : x < 0 ? -1 : x; }
