/* Every function of src/kernel/math.h against libm in long double.
 *
 * Compiled by tests/kernel_math.rs with FWP_DOUBLE, FWP_LANES, BYTES and MATH (the header) defined.
 * Prints one line a function, its largest error and where; exits with 1 where one is above its bound.
 * An argument, if given, multiplies the number of points; "speed" measures instead.
 */

#include <fenv.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if FWP_DOUBLE
typedef double real;
typedef int64_t integer;
typedef uint64_t word;
#define MANTISSA 53
#define LARGEST 0x1.fffffffffffffp1023
#define SMALLEST 0x1p-1022
#else
typedef float real;
typedef int32_t integer;
typedef uint32_t word;
#define MANTISSA 24
#define LARGEST 0x1.fffffep127f
#define SMALLEST 0x1p-126f
#endif
typedef real vf __attribute__((vector_size(BYTES)));
typedef integer vi __attribute__((vector_size(BYTES)));
#include MATH

typedef long double wide;

static int failures;

/* The distance of y from what it should be, in units in the last place. */
static double ulps(real y, wide exact)
{
    if (isnan(exact)) return isnan(y) ? 0 : INFINITY;
    if (isnan(y)) return INFINITY;
    if (isinf((real)exact)) {
        if (isinf(y)) return signbit(y) == signbit(exact) ? 0 : INFINITY;
        if (isinf(exact)) return INFINITY;
        exact = exact > 0 ? ldexpl(1, FWP_DOUBLE ? 1024 : 128) : -ldexpl(1, FWP_DOUBLE ? 1024 : 128);
    } else if (isinf(y)) {
        y = y > 0 ? (real)LARGEST : -(real)LARGEST;
    }
    const wide size = fabsl(exact) < SMALLEST ? (wide)SMALLEST : fabsl(exact);
    return (double)(fabsl((wide)y - exact) / ldexpl(1, ilogbl(size) + 1 - MANTISSA));
}

/* The same of exp and what is made of it, which give zero where the result is no normal number: kernels run in a mode in which it is. */
static double ulps_of_exp(real y, wide exact)
{
    return y == 0 && fabsl(exact) < SMALLEST ? 0 : ulps(y, exact);
}

static wide w_sigmoid(wide x) { return x >= 0 ? 1 / (1 + expl(-x)) : expl(x) / (1 + expl(x)); }
static wide w_softplus(wide x) { return isnan(x) ? x : fmaxl(x, 0) + log1pl(expl(-fabsl(x))); }
static wide w_log_sigmoid(wide x) { return -w_softplus(-x); }
static wide w_silu(wide x) { return x * w_sigmoid(x); }
static wide w_gelu(wide x) { return x * (erfcl(-x * 0.707106781186547524400844362104849039L) / 2); }
static wide w_gelu_tanh(wide x)
{
    return x * w_sigmoid(x * 1.59576912160573071175978423973752747390343452L * (1 + x * x * 0.044715L));
}
static wide w_sqrt(wide x) { return sqrtl(x); }
static wide w_rsqrt(wide x) { return 1 / sqrtl(x); }
static wide w_reciprocal(wide x) { return 1 / x; }
static wide w_relu(wide x) { return x < 0 ? 0 : x; }
static wide w_sign(wide x) { return x == 0 || isnan(x) ? x : x > 0 ? 1 : -1; }

#define SINGLE(name) static vf v_##name(vf x) { return fwp_##name(x); } static real s_##name(real x) { return fwp_##name##1(x); }
SINGLE(exp) SINGLE(expm1) SINGLE(log) SINGLE(log1p) SINGLE(tanh) SINGLE(sigmoid) SINGLE(log_sigmoid) SINGLE(softplus)
SINGLE(erf) SINGLE(gelu) SINGLE(gelu_tanh) SINGLE(silu) SINGLE(sin) SINGLE(cos) SINGLE(sqrt) SINGLE(rsqrt)
SINGLE(reciprocal) SINGLE(floor) SINGLE(relu) SINGLE(abs) SINGLE(sign)

#define EPS (FWP_DOUBLE ? 0x1p-53 : 0x1p-24)

/* `bound` in ulp; `or_of_argument`: or that part of the argument's size; `error`: how it is counted. */
static const struct function {
    const char *name;
    vf (*vector)(vf);
    real (*scalar)(real);
    wide (*exact)(wide);
    double bound, or_of_argument, from, to;
    double (*error)(real, wide);
} functions[] = {
    {"exp", v_exp, s_exp, expl, 1.5, 0, -110, 95, ulps_of_exp},
    {"expm1", v_expm1, s_expm1, expm1l, 2, 0, -30, 30, ulps},
    {"log", v_log, s_log, logl, 1.5, 0, 0, 4, ulps},
    {"log1p", v_log1p, s_log1p, log1pl, 2, 0, -1, 4, ulps},
    {"tanh", v_tanh, s_tanh, tanhl, 3, 0, -12, 12, ulps},
    {"sigmoid", v_sigmoid, s_sigmoid, w_sigmoid, 3, 0, -90, 90, ulps_of_exp},
    {"log_sigmoid", v_log_sigmoid, s_log_sigmoid, w_log_sigmoid, 3, 0, -40, 40, ulps_of_exp},
    {"softplus", v_softplus, s_softplus, w_softplus, 3, 0, -40, 40, ulps_of_exp},
    {"silu", v_silu, s_silu, w_silu, 3.5, SMALLEST, -40, 40, ulps_of_exp},
    {"erf", v_erf, s_erf, erfl, 4, 0, -7, 7, ulps},
    {"gelu", v_gelu, s_gelu, w_gelu, 2.5, 2 * EPS, -10, 10, ulps},
    {"gelu_tanh", v_gelu_tanh, s_gelu_tanh, w_gelu_tanh, 2.5, 2 * EPS, -10, 10, ulps_of_exp},
    {"sin", v_sin, s_sin, sinl, 3, 0, -100, 100, ulps},
    {"cos", v_cos, s_cos, cosl, 3, 0, -100, 100, ulps},
    {"sqrt", v_sqrt, s_sqrt, w_sqrt, 0.51, 0, 0, 10, ulps},
    {"rsqrt", v_rsqrt, s_rsqrt, w_rsqrt, 1.51, 0, 0, 10, ulps},
    {"reciprocal", v_reciprocal, s_reciprocal, w_reciprocal, 0.51, 0, -10, 10, ulps},
    {"floor", v_floor, s_floor, floorl, 0, 0, -100, 100, ulps},
    {"relu", v_relu, s_relu, w_relu, 0, 0, -10, 10, ulps},
    {"abs", v_abs, s_abs, fabsl, 0, 0, -10, 10, ulps},
    {"sign", v_sign, s_sign, w_sign, 0, 0, -10, 10, ulps},
};
#define FUNCTIONS ((int)(sizeof functions / sizeof *functions))

static const real edges[] = {
    0, SMALLEST, SMALLEST / 2, SMALLEST / 1000, 1, 0.5, 1.5, 2, 2.5, 3, 10, 0x1p-12, 0x1p-30, 0x1p22, 0x1p23, 0x1p24, 0x1p31,
    0x1p51, 0x1p52, 0x1p53, 0x1p62, 0x1p100, LARGEST, LARGEST / 2, INFINITY, NAN, (real)0.70710678118654752, (real)0.70710678,
    (real)1.41421356237309505, (real)0.9999999, (real)1.0000001, (real)88.7, (real)88.73, (real)87.3, (real)103.9,
    (real)103.98, (real)104.1, (real)709.7, (real)709.79, (real)745.1, (real)745.2, (real)1.5707963267948966,
    (real)3.1415926535897932, (real)6.2831853071795865, 5999, 6001, 999999, 1000001, 4, 6, (real)5.9, (real)3.9, 20, 40, 9, 16.5,
    (real)8.4, (real)0.3465736, (real)0.34657359, 11, 22, 355, 710, 33333,
    /* The float nearest to a multiple of pi/2, and the double. */
    (real)16367173.0 * 0x1p72f, (real)6381956970095103.0 * (FWP_DOUBLE ? 0x1p797 : 1),
};
#define EDGES ((int)(sizeof edges / sizeof *edges))

static uint64_t seed = 88172645463325252u;
static uint64_t random_bits(void)
{
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return seed * 2685821657736338717u;
}
static real any_real(void)
{
    const word w = (word)(random_bits() >> (64 - 8 * sizeof(real)));
    real x;
    memcpy(&x, &w, sizeof x);
    return x;
}
static double unit(void) { return (double)(random_bits() >> 11) * 0x1p-53; }

static void check(const struct function *f, long points)
{
    double worst = 0;
    real where = 0;
    int differ = 0;
    const long all = 2 * EDGES + points;
    for (long done = 0; done < all; done += FWP_LANES) {
        vf x;
        for (int i = 0; i < FWP_LANES; i++) {
            const long p = done + i;
            /* Edges with both signs, then any bits, a line, and near zero. */
            x[i] = p < 2 * EDGES ? (p % 2 ? -edges[p / 2] : edges[p / 2])
                : p % 3 == 0 ? any_real()
                : p % 3 == 1 ? (real)(f->from + (f->to - f->from) * unit())
                             : (real)((unit() - 0.5) * ldexp(1, -(int)(random_bits() % 8)));
        }
        const vf y = f->vector(x);
        const real one = f->scalar(x[0]);
        if (!differ && !(f->error(one, y[0]) <= f->bound) && !(fabs((double)one - (double)y[0]) <= 2 * f->or_of_argument * fabs((double)x[0]))) {
            printf("%s(%.17g): %.17g for a scalar, %.17g in a vector\n", f->name, (double)x[0], (double)one, (double)y[0]);
            failures++, differ = 1;
        }
        for (int i = 0; i < FWP_LANES; i++) {
            const wide exact = f->exact((wide)x[i]);
            double error = f->error(y[i], exact);
            if (fabsl((wide)y[i] - exact) <= f->or_of_argument * fabs((double)x[i])) error = 0;
            if (!(error <= worst)) worst = error, where = x[i];
        }
    }
    const int good = worst <= f->bound;
    failures += !good;
    printf("%-12s %8.3f ulp at %.17g%s\n", f->name, worst, (double)where, good ? "" : "   TOO MUCH");
}

static void check_pow(long points)
{
    double worst = 0;
    real worst_a = 0, worst_b = 0;
    const long all = 4L * EDGES * EDGES + points;
    for (long done = 0; done < all; done += FWP_LANES) {
        vf a, b;
        for (int i = 0; i < FWP_LANES; i++) {
            const long p = done + i;
            if (p < 4L * EDGES * EDGES) {
                a[i] = edges[p / 4 % EDGES] * (p & 1 ? -1 : 1), b[i] = edges[p / 4 / EDGES] * (p & 2 ? -1 : 1);
                if (a[i] == 0) a[i] = 0;
            } else if (p % 3 == 0) {
                a[i] = any_real(), b[i] = any_real();
            } else if (p % 3 == 1) {
                a[i] = (real)(4 * unit()), b[i] = (real)(40 * unit() - 20);
            } else {
                /* Results over the whole range. */
                a[i] = (real)fabs((double)any_real());
                const double l = log2((double)a[i]);
                b[i] = (real)((2 * unit() - 1) * (FWP_DOUBLE ? 1080 : 155) / (fabs(l) > 1e-3 ? l : 1e-3));
                if (p % 2) b[i] = (real)round((double)b[i]), a[i] = -a[i];
            }
        }
        a += 0;
        const vf y = fwp_pow(a, b);
        for (int i = 0; i < FWP_LANES; i++) {
            if (a[i] == 0) continue; /* The sign of zero is not kept, so the sign of its inverse is not either. */
            const double error = ulps_of_exp(y[i], powl((wide)a[i], (wide)b[i]));
            if (!(error <= worst)) worst = error, worst_a = a[i], worst_b = b[i];
        }
    }
    const double bound = 2;
    failures += !(worst <= bound);
    printf("%-12s %8.3f ulp at %.17g, %.17g%s\n", "pow", worst, (double)worst_a, (double)worst_b, worst <= bound ? "" : "   TOO MUCH");
    const real zero_to[][2] = {{0, 1}, {2, 0}, {-1, INFINITY}, {0, 1}};
    for (int i = 0; i < 4; i++) {
        const real y = fwp_pow1(0, zero_to[i][0]);
        if (y != zero_to[i][1]) printf("pow(0, %g) = %g\n", (double)zero_to[i][0], (double)y), failures++;
        if (zero_to[i][0] == 0 && fwp_pow1(NAN, 0) != 1) printf("pow(NaN, 0) is not 1\n"), failures++;
    }
}

static void check_rem(long points)
{
    const real whole[][3] = {{7, 3, 1}, {-7, 3, 2}, {7, -3, -2}, {-7, -3, -1}, {6, 3, 0}, {-6, 3, 0}, {0, 3, 0}, {5.5, 2, 1.5},
        {-0.25, 1, 0.75}, {1e6, 7, 1}, {3, 10, 3}, {-3, 10, 7}, {49, 49, 0}, {9, 0.5, 0}};
    for (int i = 0; i < (int)(sizeof whole / sizeof *whole); i++) {
        const real y = fwp_rem1(whole[i][0], whole[i][1]);
        if (y != whole[i][2]) printf("rem(%g, %g) = %g\n", (double)whole[i][0], (double)whole[i][1], (double)y), failures++;
    }
    const real none[][2] = {{1, 0}, {INFINITY, 2}, {NAN, 2}, {2, NAN}};
    for (int i = 0; i < 4; i++)
        if (!isnan(fwp_rem1(none[i][0], none[i][1]))) printf("rem(%g, %g) is a number\n", (double)none[i][0], (double)none[i][1]), failures++;
    /* Whole multiples leave nothing, whatever the division rounds to: here all divisors are one value, which invites a reciprocal. */
    for (int d = 1; d < 200; d++) {
        vf x;
        for (int i = 0; i < FWP_LANES; i++) x[i] = (real)(d * (i * 37 + 1));
        const vf y = fwp_rem(x, fwp_splat((real)d));
        for (int i = 0; i < FWP_LANES; i++)
            if (y[i] != 0) printf("rem(%g, %d) = %g\n", (double)x[i], d, (double)y[i]), failures++;
    }
    for (long p = 0; p < points; p++) {
        const real a = (real)(2000 * unit() - 1000), b = (real)(20 * unit() - 10);
        if (fabs((double)(a / b)) > 1e5) continue;
        const real y = fwp_rem1(a, b);
        wide exact = fmodl((wide)a, (wide)b);
        if (exact != 0 && (exact < 0) != (b < 0)) exact += (wide)b;
        const double off = (double)fabsl((wide)y - exact), size = 4 * (fabs((double)a) + fabs((double)b)) * EPS;
        if (!(off <= size || fabs(off - fabs((double)b)) <= size) || (b > 0 ? y < 0 || y > b : y > 0 || y < b)) {
            printf("rem(%.9g, %.9g) = %.9g, not %.9g\n", (double)a, (double)b, (double)y, (double)exact), failures++;
            return;
        }
    }
}

static void check_lanes(void)
{
    vf x[FWP_LANES];
    for (int i = 0; i < FWP_LANES; i++)
        for (int j = 0; j < FWP_LANES; j++) x[i][j] = (real)((i * 131 + j * j * 17) % 101);
    const vf sums = fwp_reduce_lanes(x);
    for (int i = 0; i < FWP_LANES; i++) {
        real sum = 0, max = x[i][0], min = x[i][0];
        for (int j = 0; j < FWP_LANES; j++) sum += x[i][j], max = fmax(max, x[i][j]), min = fmin(min, x[i][j]);
        if (sums[i] != sum) printf("reduce_lanes: %g, not %g in lane %d\n", (double)sums[i], (double)sum, i), failures++;
        if (fwp_lanes_sum(x[i]) != sum || fwp_lanes_max(x[i]) != max || fwp_lanes_min(x[i]) != min)
            printf("sum, max or min of lanes in vector %d\n", i), failures++;
    }
    for (int at = 0; at < FWP_LANES; at++) {
        vf y = x[1];
        y[at] = NAN;
        if (!isnan(fwp_lanes_max(y)) || !isnan(fwp_lanes_min(y))) printf("max or min of lanes lose NaN in lane %d\n", at), failures++;
        vi mask = {0};
        if (fwp_any(mask)) printf("any of nothing\n"), failures++;
        mask[at] = -1;
        if (!fwp_any(mask)) printf("any misses lane %d\n", at), failures++;
        const vf chosen = fwp_select(mask, x[0], y);
        for (int j = 0; j < FWP_LANES; j++)
            if (chosen[j] != (j == at ? x[0][j] : y[j])) printf("select in lane %d\n", j), failures++;
    }
    const real pair[] = {-INFINITY, -2, 0, 3, INFINITY, NAN};
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 6; j++) {
            const real a = pair[i], b = pair[j];
            const vf max = fwp_max(fwp_splat(a), fwp_splat(b)), min = fwp_min(fwp_splat(a), fwp_splat(b));
            const int none = isnan(a) || isnan(b);
            if (none ? !isnan(max[0]) || !isnan(min[0]) || !isnan(fwp_max1(a, b)) || !isnan(fwp_min1(a, b))
                     : max[0] != (a > b ? a : b) || min[0] != (a < b ? a : b) || fwp_max1(a, b) != max[0] || fwp_min1(a, b) != min[0])
                printf("max or min of %g and %g\n", (double)a, (double)b), failures++;
        }
}

#define POINTS 4096
static void measure(const struct function *f)
{
    static vf x[POINTS / FWP_LANES], y[POINTS / FWP_LANES];
    for (int i = 0; i < POINTS; i++) x[i / FWP_LANES][i % FWP_LANES] = (real)(strcmp(f->name, "log") ? 8 * unit() - 4 : 8 * unit());
    double best = INFINITY;
    for (int round = 0; round < 200; round++) {
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        for (int i = 0; i < POINTS / FWP_LANES; i++) {
            switch (f - functions) {
            case 0: y[i] = fwp_exp(x[i]); break;
            case 4: y[i] = fwp_tanh(x[i]); break;
            case 2: y[i] = fwp_log(x[i]); break;
            case 5: y[i] = fwp_sigmoid(x[i]); break;
            case 7: y[i] = fwp_softplus(x[i]); break;
            case 12: y[i] = fwp_sin(x[i]); break;
            default: y[i] = f->vector(x[i]);
            }
        }
        clock_gettime(CLOCK_MONOTONIC, &to);
        __asm__ volatile("" : : "r"(y) : "memory");
        const double ns = (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
        if (ns < best) best = ns;
    }
    printf("%-12s %8.3f ns an element\n", f->name, best / POINTS);
}

int main(int count, char **arguments)
{
    if (count > 1 && strcmp(arguments[1], "speed") == 0) {
        for (int i = 0; i < FUNCTIONS; i++) measure(&functions[i]);
        return 0;
    }
    const long points = 30000 * (count > 1 ? atol(arguments[1]) : 1);
    for (int i = 0; i < FUNCTIONS; i++) check(&functions[i], points);
    check_pow(points);
    check_rem(points);
    check_lanes();
    return failures > 0;
}
