/* The kernels that need more than every processor has, and the choice among them. See _mask.h.
 *
 * AVX2 already runs at the pace of memcpy, so there is no AVX-512 version: on many processors it would slow
 * the clock for everything else.
 */
#include "_mask.h"

#if defined(__x86_64__) || defined(__i386__)
__attribute__((target("avx2"))) FABRIC_MASK_KERNEL(fabric_mask_avx2, 32)

static int fabric_has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2");
}
#endif

fabric_mask_kernel fabric_mask_named(const char *name)
{
#if defined(__x86_64__) || defined(__i386__)
    if (strcmp(name, "avx2") == 0 && fabric_has_avx2())
        return fabric_mask_avx2;
#endif
    return strcmp(name, "baseline") == 0 ? fabric_mask_baseline : NULL;
}

const char *fabric_mask_fastest(void)
{
    return fabric_mask_named("avx2") ? "avx2" : "baseline";
}
