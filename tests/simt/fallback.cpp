// Fibers by swapcontext, as on processors without a switch of their own: a part of the conformance
// checks. Compiled with -DSIMT_USE_UCONTEXT.
#include "conformance/block_checks.h"

int main() {
  for (int schedule = 0; schedule < 5; ++schedule) {
    simt::set_schedule(schedule);
    conformance::check_blocks();
  }
  return conformance::failures == 0 ? 0 : 1;
}
