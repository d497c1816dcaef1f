// Linked into the holder of a test with the race detector. A program with the detector sleeps for a
// second before it exits, so that races at its end are seen. The keeper gets its environment from
// the holder, and every test would wait for that second.
#include <stdlib.h>

__attribute__((constructor)) static void exit_sooner(void) { setenv("GORACE", "atexit_sleep_ms=20", 0); }
