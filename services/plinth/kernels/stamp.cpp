// What this library is made of, to be found in its file before any of it is loaded: `build.py` says
// what and compares.

extern "C" __attribute__((visibility("default"), used)) const char plinth_kernels_stamp[] =
    "plinth-kernels-stamp:" PLINTH_STAMP;
