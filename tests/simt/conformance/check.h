// What the conformance checks share: a count of failures, and launches that must fail.
#pragma once

#include <simt/simt.h>

#include <cstdio>
#include <initializer_list>
#include <string>

namespace conformance {

inline int failures = 0;

inline void expect(bool right, const std::string& what) {
  if (right) return;
  ++failures;
  std::printf("schedule %d, poison %#x: %s\n", simt::settings().schedule,
              static_cast<unsigned>(simt::settings().poison), what.c_str());
}

// Runs `launch`, which must throw an error whose text has all `parts`.
template <class Launch>
void expect_error(std::initializer_list<const char*> parts, Launch launch) {
  std::string message = "(no error)";
  try {
    launch();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  for (const char* part : parts) {
    expect(message.find(part) != std::string::npos,
           "expected \"" + std::string(part) + "\" in: " + message);
  }
}

}  // namespace conformance
