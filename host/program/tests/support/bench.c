#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

static real *drawn(int64_t n)
{
    real *p = aligned_alloc(64, (n * sizeof(real) + 127) / 64 * 64);
    for (int64_t i = 0; i < n; i++) p[i] = (real)((rand() % 2001 - 1000) * 1e-4);
    return p;
}

/* Arguments: steps sequences interval blocks saved forward-memory backward-memory slots runs,
 * number of inputs, elements and gradient elements of each, number of states, elements of each, number of kept values, elements of each. */
int main(int argc, char **argv)
{
    int at = 1;
    (void)argc;
    const int64_t steps = atoll(argv[at++]), sequences = atoll(argv[at++]), interval = atoll(argv[at++]), blocks = atoll(argv[at++]);
    const int64_t saved = atoll(argv[at++]);
    const int64_t forward = atoll(argv[at++]), fixed = atoll(argv[at++]), slots = atoll(argv[at++]), runs = atoll(argv[at++]);
    const void *in[64];
    int64_t in_step[64], in_sequence[64];
    real *in_gradient[64], *kept[64], *end[64], *checkpoint[64], *start_gradient[64];
    const real *start[64], *kept_gradient[64], *end_gradient[64];
    const int64_t n_in = atoll(argv[at++]);
    for (int64_t i = 0; i < n_in; i++) {
        const int64_t n = atoll(argv[at++]), g = atoll(argv[at++]);
        in[i] = drawn(n * steps * sequences);
        in_step[i] = n * sequences, in_sequence[i] = n;
        in_gradient[i] = drawn(g);
    }
    const int64_t n_states = atoll(argv[at++]);
    for (int64_t i = 0; i < n_states; i++) {
        const int64_t n = atoll(argv[at++]) * sequences;
        start[i] = drawn(n), end[i] = drawn(n), start_gradient[i] = drawn(n), end_gradient[i] = drawn(n);
        checkpoint[i] = drawn(((steps + interval - 1) / interval + 1) * n);
    }
    const int64_t n_kept = atoll(argv[at++]);
    for (int64_t i = 0; i < n_kept; i++) {
        const int64_t n = atoll(argv[at++]) * steps * sequences;
        kept[i] = drawn(n), kept_gradient[i] = drawn(n);
    }
    struct fwp_scan s = {0};
    s.steps = steps, s.sequences = sequences, s.interval = interval;
    s.in = in, s.in_step = in_step, s.in_sequence = in_sequence, s.start = start;
    s.saved = drawn(saved * steps * sequences * blocks), s.together = blocks;
    s.kept = kept, s.end = end, s.checkpoint = checkpoint;
    s.kept_gradient = kept_gradient, s.end_gradient = end_gradient, s.in_gradient = in_gradient, s.start_gradient = start_gradient;
    void *a = aligned_alloc(64, (forward * blocks + 127) / 64 * 64), *b = aligned_alloc(64, (fixed * blocks + 127) / 64 * 64);
    void *c = aligned_alloc(64, (slots + 127) / 64 * 64);
    double best[2] = {1e9, 1e9};
    for (int64_t r = 0; r < runs; r++) {
        double t = now();
        for (int64_t u = 0; u < sequences; u++) fwp_forward(&s, u, 0, fwp_segments(&s), a, 0);
        const double f = now() - t;
        t = now();
        for (int64_t u = 0; u < sequences; u++) fwp_backward(&s, u, 0, fwp_segments(&s), b, c);
        const double g = now() - t;
        if (f < best[0]) best[0] = f;
        if (g < best[1]) best[1] = g;
    }
    printf("%.3f %.3f\n", best[0], best[1]);
    return 0;
}
