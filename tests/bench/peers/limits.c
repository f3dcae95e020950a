/* What this machine can do at most: bytes read per second, bf16 and int8 operations per second, with a number of threads.
 *
 *   cc -O3 -march=native -pthread limits.c -o limits && ./limits 2
 *
 * The products read their operands from registers, so these are the peaks of the arithmetic units at the clock that they run at. A line that
 * this machine has no instruction for is left out. Prints one JSON object.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

enum { BYTES = 512 << 20, REPEATS = 5, CHAINS = 16 };
static const long STEPS = 16 << 20;

struct job {
    const uint64_t *from;
    size_t words;
    uint64_t result;
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void *read_all(void *argument) {
    struct job *job = argument;
    uint64_t sums[64] = {0};
    for (size_t i = 0; i + 64 <= job->words; i += 64)
        for (int j = 0; j < 64; j++) sums[j] |= job->from[i + j];
    for (int j = 0; j < 64; j++) job->result |= sums[j];
    return NULL;
}

/* Sixteen sums that do not wait for each other, each in a register of its own: an array would be kept in memory. */
#define ALL(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define START(n) s##n = start;
/* The empty assembly keeps the compiler from leaving a sum out that nobody reads. */
#define STEP(n) s##n = STEP_OF(s##n); __asm__ volatile("" : "+v"(s##n));
#define PRODUCT(name, vector, zero)                                                            \
    static void *name(void *argument) {                                                        \
        (void)argument;                                                                        \
        vector start = zero, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15; \
        ALL(START)                                                                             \
        for (long i = 0; i < STEPS; i++) { ALL(STEP) }                                         \
        return NULL;                                                                           \
    }

#if defined(__AVX512F__)
#define STEP_OF(s) _mm512_fmadd_ps(s, _mm512_set1_ps(0.999f), _mm512_set1_ps(0.5f))
PRODUCT(product_f32, __m512, _mm512_setzero_ps())
#undef STEP_OF
#elif defined(__FMA__)
#define STEP_OF(s) _mm256_fmadd_ps(s, _mm256_set1_ps(0.999f), _mm256_set1_ps(0.5f))
PRODUCT(product_f32, __m256, _mm256_setzero_ps())
#undef STEP_OF
#endif
#ifdef __AVX512BF16__
#define STEP_OF(s) _mm512_dpbf16_ps(s, (__m512bh)_mm512_set1_epi16(0x3f80), (__m512bh)_mm512_set1_epi16(0x3f80))
PRODUCT(product_bf16, __m512, _mm512_setzero_ps())
#undef STEP_OF
#endif
#ifdef __AVX512VNNI__
#define STEP_OF(s) _mm512_dpbusd_epi32(s, _mm512_set1_epi8(1), _mm512_set1_epi8(2))
PRODUCT(product_int8, __m512i, _mm512_setzero_si512())
#undef STEP_OF
#endif

/* The best of some repeats of all threads together. */
static double seconds(void *(*work)(void *), struct job *jobs, int threads) {
    double best = 1e9;
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        pthread_t running[64];
        double started = now();
        for (int t = 0; t < threads; t++) pthread_create(&running[t], NULL, work, &jobs[t]);
        for (int t = 0; t < threads; t++) pthread_join(running[t], NULL);
        double taken = now() - started;
        if (taken < best) best = taken;
    }
    return best;
}

int main(int count, char **arguments) {
    int threads = count > 1 ? atoi(arguments[1]) : 1;
    if (threads < 1 || threads > 64) return 2;
    struct job jobs[64];
    uint64_t *memory = aligned_alloc(64, BYTES);
    if (!memory) return 1;
    memset(memory, 1, BYTES);
    size_t each = BYTES / 8 / threads;
    for (int t = 0; t < threads; t++) jobs[t] = (struct job){memory + t * each, each, 0};
    printf("{\"threads\": %d, \"read_gb_per_s\": %.2f", threads, BYTES / seconds(read_all, jobs, threads) / 1e9);
    double operations = 2.0 * CHAINS * STEPS * threads / 1e9;
#ifdef __AVX512F__
    printf(", \"f32_gflop_per_s\": %.1f", operations * 16 / seconds(product_f32, jobs, threads));
#elif defined(__FMA__)
    printf(", \"f32_gflop_per_s\": %.1f", operations * 8 / seconds(product_f32, jobs, threads));
#endif
#ifdef __AVX512BF16__
    printf(", \"bf16_gflop_per_s\": %.1f", operations * 32 / seconds(product_bf16, jobs, threads));
#endif
#ifdef __AVX512VNNI__
    printf(", \"int8_gop_per_s\": %.1f", operations * 64 / seconds(product_int8, jobs, threads));
#endif
    printf("}\n");
    return (int)(jobs[0].result & 0);
}
