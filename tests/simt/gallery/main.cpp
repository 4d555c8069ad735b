// gallery BUG [SCHEDULE POISON]: runs the planted bug (0: none) under one configuration, or under
// all, and prints a line for each: "SCHEDULE POISON ok" or what is wrong.
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "gallery/gallery.h"

namespace {

void run(const gallery::Exhibit& exhibit, int schedule, int poison, std::optional<float>& total) {
  simt::set_schedule(schedule);
  simt::set_poison(static_cast<unsigned char>(poison));
  std::string verdict;
  try {
    const gallery::Outcome outcome = exhibit.run();
    verdict = outcome.wrong;
    if (!total) total = outcome.total;
    if (verdict.empty() && outcome.total != *total) verdict = "not repeatable";
  } catch (const std::exception& error) {
    verdict = error.what();
  }
  std::printf("%d %#x %s\n", schedule, static_cast<unsigned>(poison),
              verdict.empty() ? "ok" : verdict.c_str());
}

}  // namespace

int main(int count, char** arguments) {
  const int bug = count > 1 ? std::atoi(arguments[1]) : 0;
  for (const gallery::Exhibit& exhibit : gallery::exhibits()) {
    if (exhibit.bug != bug) continue;
    std::optional<float> total;
    if (count > 3) {
      run(exhibit, std::atoi(arguments[2]), static_cast<int>(std::strtol(arguments[3], nullptr, 0)),
          total);
      return 0;
    }
    for (int schedule = 0; schedule < 12; ++schedule) {
      for (const int poison : {0xff, 0x7e}) run(exhibit, schedule, poison, total);
    }
    return 0;
  }
  std::fprintf(stderr, "no such bug\n");
  return 2;
}
