// The emulator's own test program.
//
// selftest conformance   Runs all checks under every kind of schedule, with both poisons. Silent
//                        and 0 if all is right; else a line for every difference, and 1.
// selftest gallery BUG   Runs the planted bug (0: none) under one configuration after another and
//                        prints a line for each: "SCHEDULE POISON ok", or what is wrong.
// selftest gallery BUG SCHEDULE POISON   The same under one configuration.
// selftest settings      Prints the schedule and the poison that the environment asks for.
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "conformance/block_checks.h"
#include "conformance/cluster_checks.h"
#include "conformance/error_checks.h"
#include "conformance/warp_checks.h"
#include "gallery/gallery.h"

namespace {

int check_conformance() {
  for (int schedule = 0; schedule < 7; ++schedule) {
    simt::set_schedule(schedule);
    simt::set_poison(schedule % 2 == 0 ? 0xff : 0x7e);
    conformance::check_warps();
    conformance::check_blocks();
    conformance::check_errors();
    conformance::check_clusters();  // after errors: a failed launch leaves nothing behind
  }
  return conformance::failures == 0 ? 0 : 1;
}

void exhibit(gallery::Run run, int schedule, int poison, std::optional<float>& total) {
  simt::set_schedule(schedule);
  simt::set_poison(static_cast<unsigned char>(poison));
  std::string verdict;
  try {
    const gallery::Outcome outcome = run();
    verdict = outcome.wrong;
    if (!total) total = outcome.total;
    if (verdict.empty() && outcome.total != *total) verdict = "not repeatable";
  } catch (const std::exception& error) {
    verdict = error.what();
  }
  std::printf("%d %#x %s\n", schedule, static_cast<unsigned>(poison),
              verdict.empty() ? "ok" : verdict.c_str());
}

int number(const char* argument) { return static_cast<int>(std::strtol(argument, nullptr, 0)); }

int show_gallery(int count, char** arguments) {
  const gallery::Run run = gallery::find(number(arguments[0]));
  if (run == nullptr) return 2;
  std::optional<float> total;  // of the first configuration: the others must give the same bits
  if (count == 3) {
    exhibit(run, number(arguments[1]), number(arguments[2]), total);
    return 0;
  }
  for (int schedule = 0; schedule < 12; ++schedule) {
    exhibit(run, schedule, 0xff, total);
    if (schedule < 3) exhibit(run, schedule, 0x7e, total);
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string_view what = count > 1 ? arguments[1] : "";
  if (what == "conformance") return check_conformance();
  if (what == "gallery" && count > 2) return show_gallery(count - 2, arguments + 2);
  if (what != "settings") return 2;
  std::printf("%d %#x\n", simt::settings().schedule,
              static_cast<unsigned>(simt::settings().poison));
  return 0;
}
