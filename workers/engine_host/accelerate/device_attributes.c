/* Asks the driver for each attribute of the device only once. A GPU's engine host that uses TensorRT 8 is started with
this library as LD_PRELOAD.

TensorRT 8 asks for seven attributes for each weight that it refits, and for more while it compiles. The driver has to
ask the GPU's firmware for some of them, in 48 calls of 0.1 ms.

The CUDA runtime is part of TensorRT's library. It finds the driver's functions through cuGetProcAddress, which it finds
through dlsym. So this library answers both. An engine host sees one device, number 0. Nothing is remembered of other
devices, nor of attributes that may change while a process runs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#define FIRST_DLSYM "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define FIRST_DLSYM "GLIBC_2.17"
#else
#error "CUDA is for x86-64 and 64-bit Arm"
#endif

enum { SUCCESS = 0, ATTRIBUTES = 1024, CUDA_12 = 12000 };
enum { MULTIPROCESSOR_COUNT = 16, KERNEL_EXEC_TIMEOUT = 17, COMPUTE_MODE = 20 }; /* CUdevice_attribute */

typedef void *(*DlSym)(void *, const char *);
typedef int (*GetAttribute)(int *value, int attribute, int device);
typedef int (*GetProcAddress)(const char *symbol, void **function, int version, uint64_t flags);
typedef int (*GetProcAddress2)(const char *symbol, void **function, int version, uint64_t flags, void *status);

static DlSym real_dlsym;
static GetAttribute real_attribute;
static GetProcAddress real_proc_address;
static GetProcAddress2 real_proc_address_2;

static void *_Atomic driver; /* the address at which the driver's library is mapped */

static const int64_t KNOWN = INT64_C(1) << 32;
static _Atomic int64_t remembered[ATTRIBUTES]; /* KNOWN and the value, or 0 */

/* If MPS partitions a GPU, the number of multiprocessors depends on the context. An administrator sets the others. */
static int may_change(int attribute)
{
    return attribute == MULTIPROCESSOR_COUNT || attribute == KERNEL_EXEC_TIMEOUT || attribute == COMPUTE_MODE;
}

static int get_attribute(int *value, int attribute, int device)
{
    int is_kept = device == 0 && attribute >= 0 && attribute < ATTRIBUTES && !may_change(attribute) && value;
    int64_t found = is_kept ? atomic_load(&remembered[attribute]) : 0;
    if (found) {
        *value = (int)(uint32_t)found;
        return SUCCESS;
    }
    int status = real_attribute(value, attribute, device);
    if (is_kept && status == SUCCESS)
        atomic_store(&remembered[attribute], KNOWN | (uint32_t)*value);
    return status;
}

static int get_proc_address(const char *symbol, void **function, int version, uint64_t flags);
static int get_proc_address_2(const char *symbol, void **function, int version, uint64_t flags, void *status);

/* Whether a function is the driver's own. A library in front of the driver has some of the same names and calls it. */
static int is_of_driver(void *function)
{
    Dl_info found;
    void *first = NULL;
    if (!dladdr(function, &found))
        return 0;
    return atomic_compare_exchange_strong(&driver, &first, found.dli_fbase) || first == found.dli_fbase;
}

/* Return what to call instead of a function of the driver. `version` is the CUDA version asked for, 0 if only the name
says it. */
static void *ours(const char *symbol, void *function, int version)
{
    int is_attribute = !strcmp(symbol, "cuDeviceGetAttribute");
    int is_v2 = !strcmp(symbol, "cuGetProcAddress_v2");
    int is_either = !strcmp(symbol, "cuGetProcAddress");
    if (!(is_attribute || is_v2 || is_either) || !is_of_driver(function))
        return function;
    if (is_attribute) {
        real_attribute = (GetAttribute)function;
        return (void *)get_attribute;
    }
    if (is_v2 || version >= CUDA_12) {
        real_proc_address_2 = (GetProcAddress2)function;
        return (void *)get_proc_address_2;
    }
    real_proc_address = (GetProcAddress)function;
    return (void *)get_proc_address;
}

static int get_proc_address(const char *symbol, void **function, int version, uint64_t flags)
{
    int result = real_proc_address(symbol, function, version, flags);
    if (result == SUCCESS && *function)
        *function = ours(symbol, *function, version);
    return result;
}

static int get_proc_address_2(const char *symbol, void **function, int version, uint64_t flags, void *status)
{
    int result = real_proc_address_2(symbol, function, version, flags, status);
    if (result == SUCCESS && *function)
        *function = ours(symbol, *function, version);
    return result;
}

__attribute__((constructor)) static void find_dlsym(void)
{
    real_dlsym = (DlSym)dlvsym(RTLD_NEXT, "dlsym", FIRST_DLSYM);
}

__attribute__((visibility("default"))) void *dlsym(void *handle, const char *symbol)
{
    if (!real_dlsym)
        find_dlsym();
    if (handle == RTLD_NEXT || handle == RTLD_DEFAULT || strncmp(symbol, "cu", 2))
        return real_dlsym(handle, symbol); /* compiled to a jump, because both handles depend on the caller */
    void *function = real_dlsym(handle, symbol);
    return function ? ours(symbol, function, 0) : function;
}
