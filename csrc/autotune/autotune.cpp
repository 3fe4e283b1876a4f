#include "autotune/autotune.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace aoq {
namespace {

Autotune parse(const std::string& wanted, const char* source) {
  if (wanted.empty() || wanted == "0") return Autotune::off;
  if (wanted == "read") return Autotune::read;
  if (wanted == "1") return Autotune::tune;
  throw std::invalid_argument(source + ("=" + wanted) + ": expected 0, 1 or read");
}

std::atomic<Autotune>& mode() {
  static std::atomic<Autotune> mode{[] {
    const char* wanted = std::getenv("AOQ_AUTOTUNE");
    return parse(wanted ? wanted : "", "AOQ_AUTOTUNE");
  }()};
  return mode;
}

// ---- the file: {"aoq autotune": version, "configs": {key: {"config": .., "ns": .., "model_ns": ..}, ..}}

struct Entry {
  int64_t config, ns, model_ns;  // -1: the cost model's choice; what both take
};
using Entries = std::map<std::string, Entry>;

constexpr const char* kVersionKey = "aoq autotune";

// JSON of objects, strings and integers, which is all that the file has.
class Reader {
 public:
  explicit Reader(std::string text) : text_(std::move(text)) {}

  // Calls member(name) with the reader at its value.
  template <class Member>
  void object(Member member) {
    expect('{');
    for (bool more = next() != '}'; more;) {
      const std::string name = string();
      expect(':');
      member(name);
      more = next() == ',';
      if (more) ++at_;
    }
    expect('}');
  }

  std::string string() {
    expect('"');
    std::string value;
    for (; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      char c = text_[at_];
      if (c == '\\') {
        c = ++at_ < text_.size() ? text_[at_] : '\0';
        if (c != '"' && c != '\\' && c != '/') fail("an escape other than \\\", \\\\ and \\/");
      }
      value += c;
    }
    if (at_ == text_.size()) fail("a string without an end");
    ++at_;
    return value;
  }

  int64_t integer() {
    next();
    const char* const begin = text_.c_str() + at_;
    char* end = nullptr;
    errno = 0;
    const long long value = std::strtoll(begin, &end, 10);
    if (end == begin || errno) fail("not an integer");
    at_ += static_cast<size_t>(end - begin);
    return value;
  }

  void end() {
    next();
    if (at_ < text_.size()) fail("more after the end");
  }

 private:
  // The next character that is no space, 0 at the end.
  char next() {
    at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size());
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  void expect(char wanted) {
    if (next() != wanted) fail(std::string("expected ") + wanted);
    ++at_;
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error("byte " + std::to_string(at_) + ": " + what);
  }

  std::string text_;
  size_t at_ = 0;
};

// Nothing where there is no file; raises where it is not one of this aoq's.
Entries read(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) {
    if (std::filesystem::exists(file)) throw std::runtime_error("cannot be read");
    return {};
  }
  std::ostringstream text;
  text << in.rdbuf();
  Reader reader(text.str());
  std::string version;
  Entries entries;
  reader.object([&](const std::string& name) {
    if (name == kVersionKey) {
      version = reader.string();
    } else if (name == "configs") {
      reader.object([&](const std::string& key) {
        Entry entry{-2, 0, 0};
        reader.object([&](const std::string& part) {
          const int64_t value = reader.integer();
          (part == "config" ? entry.config : part == "ns" ? entry.ns : entry.model_ns) = value;
        });
        if (entry.config < -1 || entry.config > 1 << 20) throw std::runtime_error(key + ": no config");
        entries[key] = entry;
      });
    } else {
      throw std::runtime_error("\"" + name + "\": aoq writes no such file");
    }
  });
  reader.end();
  if (version.empty()) throw std::runtime_error("aoq has not written it");
  if (version != AOQ_VERSION) throw std::runtime_error("aoq " + version + " has written it, this is " + AOQ_VERSION);
  return entries;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return out + "\"";
}

std::string written(const Entries& entries) {
  std::ostringstream out;
  out << "{\n " << quoted(kVersionKey) << ": " << quoted(AOQ_VERSION) << ",\n \"configs\": {";
  const char* separator = "\n";
  for (const auto& [key, entry] : entries) {
    out << separator << "  " << quoted(key) << ": {\"config\": " << entry.config << ", \"ns\": " << entry.ns
        << ", \"model_ns\": " << entry.model_ns << "}";
    separator = ",\n";
  }
  out << "\n }\n}\n";
  return out.str();
}

std::runtime_error system_error(const std::string& what) {
  return std::runtime_error(what + ": " + std::strerror(errno));
}

class Descriptor {
 public:
  Descriptor(const std::string& path, int flags) : descriptor_(open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    if (descriptor_ < 0) throw system_error(path);
  }
  ~Descriptor() { close(descriptor_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  operator int() const { return descriptor_; }

 private:
  int descriptor_;
};

// Adds `fresh` to the file and returns all that it then has. What another process has written of a problem stays, so
// that all agree; the folder is locked meanwhile, and who reads sees the old file or the new one.
Entries add(const std::string& file, const Entries& fresh) {
  const std::filesystem::path folder = std::filesystem::absolute(file).parent_path();
  std::filesystem::create_directories(folder);
  const Descriptor lock(folder.string(), O_RDONLY | O_DIRECTORY);
  while (flock(lock, LOCK_EX) != 0)
    if (errno != EINTR) throw system_error(folder.string());
  Entries entries = read(file);
  const size_t before = entries.size();
  entries.insert(fresh.begin(), fresh.end());
  if (entries.size() == before) return entries;
  const std::string part = file + ".part", text = written(entries);
  {
    const Descriptor out(part, O_WRONLY | O_CREAT | O_TRUNC);
    for (size_t at = 0; at < text.size();) {
      const ssize_t count = write(out, text.data() + at, text.size() - at);
      if (count < 0 && errno != EINTR) throw system_error(part);
      if (count > 0) at += static_cast<size_t>(count);
    }
    if (fsync(out) != 0) throw system_error(part);
  }
  if (std::rename(part.c_str(), file.c_str()) != 0) throw system_error(file);
  return entries;
}

// AOQ_AUTOTUNE_FILE, or one in the user's cache; empty where there is neither.
std::string file_name() {
  if (const char* file = std::getenv("AOQ_AUTOTUNE_FILE"); file && *file) return file;
  const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
  const std::string name = std::string("aoq/autotune-") + AOQ_VERSION + ".json";
  if (cache && *cache) return std::string(cache) + "/" + name;
  return home && *home ? std::string(home) + "/.cache/" + name : "";
}

// ---- what this process knows

struct Known {
  std::mutex mutex;
  bool loaded = false;
  std::string file;  // empty: none, or none that may be used
  Entries entries;
  std::set<std::string> said;
};

Known& known() {
  static Known known;
  return known;
}

// Each line once. With the mutex held.
void say(Known& known, const std::string& what) {
  if (known.said.insert(what).second) std::fprintf(stderr, "aoq: AOQ_AUTOTUNE: %s\n", what.c_str());
}

void load(Known& known) {
  known.loaded = true;
  known.file = file_name();
  if (known.file.empty()) return say(known, "no file: set AOQ_AUTOTUNE_FILE, XDG_CACHE_HOME or HOME");
  try {
    known.entries = read(known.file);
    if (autotune() == Autotune::read && known.entries.empty())
      say(known, known.file + " has no configs: cost models choose");
  } catch (const std::exception& error) {
    say(known, known.file + ": " + error.what() + "; it is left as it is, and not used");
    known.file.clear();
  }
}

// Adds what `use` returns of the file to what is known; where it fails, that is said.
template <class Use>
void use_file(Known& known, Use use) {
  if (known.file.empty()) return;
  try {
    const Entries entries = use(known.file);
    known.entries.insert(entries.begin(), entries.end());
  } catch (const std::exception& error) {
    say(known, known.file + ": " + error.what());
  }
}

std::optional<int> find(const Known& known, const TunedProblem& problem) {
  const auto found = known.entries.find(problem.key);
  if (found == known.entries.end()) return std::nullopt;
  const int64_t config = found->second.config;
  // Of a problem whose operands are not aligned like those that were timed, say: the cost model knows what fits.
  return config >= 0 && config < problem.configs && problem.fits(static_cast<int>(config)) ? static_cast<int>(config)
                                                                                           : -1;
}

// ---- timing

constexpr int kPasses = 7;
constexpr double kHopeless = 1.25;  // times the fastest of the first pass: not timed again
constexpr double kBetter = 0.98;    // of the time of the cost model's choice, which stays where that is not reached

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

Entry fastest(const TunedProblem& problem, const std::function<double(int)>& nanoseconds) {
  struct Timed {
    int config;
    std::vector<double> ns;
  };
  std::vector<Timed> timed{{-1, {}}};
  for (int config = 0; config < problem.configs; ++config)
    if (problem.fits(config)) timed.push_back({config, {}});
  for (const Timed& one : timed) nanoseconds(one.config);  // loads its kernels
  double least = 0;
  for (Timed& one : timed) {
    one.ns.push_back(nanoseconds(one.config));
    if (least == 0 || one.ns[0] < least) least = one.ns[0];
  }
  auto hopeless = [&](const Timed& one) { return one.config >= 0 && one.ns[0] > kHopeless * least; };
  timed.erase(std::remove_if(timed.begin(), timed.end(), hopeless), timed.end());
  for (int pass = 1; pass < kPasses; ++pass) {  // in turns, so that a clock that changes does so for all
    for (Timed& one : timed) one.ns.push_back(nanoseconds(one.config));
    std::reverse(timed.begin(), timed.end());
  }
  double best = 0, model = 0;
  int config = -1;
  for (const Timed& one : timed) {
    const double ns = median(one.ns);
    if (one.config < 0) model = ns;
    if (best != 0 && ns >= best) continue;
    best = ns;
    config = one.config;
  }
  if (best > kBetter * model) return {-1, static_cast<int64_t>(model), static_cast<int64_t>(model)};
  return {config, static_cast<int64_t>(best), static_cast<int64_t>(model)};
}

const char* name(Dtype dtype) { return dtype == Dtype::f32 ? "fp32" : dtype == Dtype::f16 ? "fp16" : "bf16"; }

}  // namespace

Autotune autotune() { return mode().load(std::memory_order_relaxed); }

void set_autotune(const std::string& value) {
  const Autotune wanted = parse(value, "set_autotune");
  const std::lock_guard<std::mutex> guard(known().mutex);
  known().loaded = false;
  known().entries.clear();
  known().said.clear();
  mode().store(wanted);
}

std::string tuned_key(const char* op, const PackedMm& mm, const char* codes, const std::string& device) {
  int64_t rows = 1;
  while (rows < mm.m) rows *= 2;
  std::string key = op;
  key += " on " + device + ": m <= " + std::to_string(rows) + ", n " + std::to_string(mm.n) + ", k " +
         std::to_string(mm.k);
  if (mm.group < mm.k) key += ", group " + std::to_string(mm.group);
  key += std::string(", x ") + name(mm.x.dtype) + ", scale " + name(mm.w.scales.dtype);
  if (*codes) key += std::string(", codes ") + codes;
  if (mm.w.scales.zero_point) key += ", zero points";
  if (mm.x.asymmetric) key += ", x asymmetric";
  return key;
}

int tuned_config(const TunedProblem& problem, const std::function<bool()>& may_time,
                 const std::function<double(int)>& nanoseconds) {
  Known& all = known();
  {
    const std::lock_guard<std::mutex> guard(all.mutex);
    if (!all.loaded) load(all);
    if (const auto config = find(all, problem)) return *config;
    if (autotune() != Autotune::tune || !may_time()) return -1;
    use_file(all, [&](const std::string& file) { return read(file); });  // another process may know it by now
    if (const auto config = find(all, problem)) return *config;
  }
  // Not locked: what runs here may wait for a thread that waits above. Those that time the same problem agree below.
  Entry fresh{-1, 0, 0};
  std::string failed;
  try {
    fresh = fastest(problem, nanoseconds);
  } catch (const std::exception& error) {
    failed = error.what();
  }
  const std::lock_guard<std::mutex> guard(all.mutex);
  if (failed.empty())
    use_file(all, [&](const std::string& file) { return add(file, {{problem.key, fresh}}); });
  else
    say(all, problem.key + ": " + failed + "; the cost model chooses");
  all.entries.insert({problem.key, fresh});
  return *find(all, problem);
}

}  // namespace aoq
