// csml: contrastive pretraining of image encoders, and everything around it, in one binary.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "apps/command.h"
#include "apps/completion.h"
#include "apps/short_waits.h"
#include "engine/comm.h"
#include "engine/nearest.h"
#include "engine/text.h"
#include "kernels/check.h"
#include "version.h"

namespace csml {
namespace {

constexpr size_t kMostMessageBytes = 4000;

/// What the shell or a service left closed, full or gone shall not decide how a command ends.
void prepare_process() {
  // A closed 0, 1 or 2 would become the number of the next file that is opened, and log lines would land in it. Standard
  // output that was closed is opened for reading: writing to it still fails and is told.
  for (int number = STDIN_FILENO; number <= STDERR_FILENO; ++number)
    if (::fcntl(number, F_GETFD) < 0 && errno == EBADF && ::open("/dev/null", O_RDONLY) != number) ::_exit(1);
  // Writing to a pipe without a reader and beyond ulimit -f then fails with an error that is handled where it happens.
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);
}

int failed(int code, std::string message) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::string rank;
  try {
    if (const Launch job = launch(); job.size > 1) {
      // What every process of a job meets, rank 0 tells; its launcher then ends the others.
      if (job.rank > 0) std::this_thread::sleep_for(std::chrono::seconds(2));
      rank = cat("[rank {}] ", job.rank);
    }
  } catch (const UsageError&) {  // the message is about the environment, then
  }
  const std::string line = cat("csml: {}{}\n", rank, printable(message, kMostMessageBytes));
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
  return code;
}

std::vector<std::string> flags_of(const CLI::App& command) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : command.get_options())
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  return flags;
}

/// What CLI11 says is wrong, with the nearest flag of the command where one is unknown.
std::string usage_message(const CLI::App& app, const CLI::ParseError& error) {
  const auto parsed = app.get_subcommands();
  const CLI::App& command = parsed.empty() ? app : *parsed.back();
  const std::string help =
      cat("csml{}{} --help tells more", parsed.empty() ? "" : " ", parsed.empty() ? "" : command.get_name());
  if (dynamic_cast<const CLI::ExtrasError*>(&error)) {
    for (const std::string& argument : command.remaining(true)) {
      if (!argument.starts_with("--")) continue;
      const std::string flag = argument.substr(0, argument.find('='));
      return cat("unknown flag {}{} ({})", flag, suggestion(flag, flags_of(command)), help);
    }
  }
  return cat("{} ({})", error.what(), help);
}

/// "help", "help COMMAND" and "completion SHELL", which are about the other commands; -1: something else was asked.
int run_about(CLI::App& app, int argc, char** argv) {
  const std::string asked = argc > 1 ? argv[1] : "", about = argc > 2 ? argv[2] : "";
  if (asked == "completion") {
    answer({}, {}, completion_script(app, about.empty() ? "bash" : about));
    return 0;
  }
  if (asked != "help") return -1;
  const CLI::App* command = &app;
  std::vector<std::string> names;
  for (const CLI::App* known : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(known->get_name());
    if (known->get_name() == about) command = known;
  }
  if (!about.empty() && command == &app)
    throw UsageError(cat("help {}: no such command{}", printable(about, 200),
                         suggestion(about, names, cat("; known are {}", fmt::join(names, ", ")))));
  answer({}, {}, command->help(command == &app ? "" : "csml"));
  return 0;
}

int run(int argc, char** argv) {
  const std::vector<std::string> arguments(argv, argv + argc);
  CLI::App app("csml: contrastive pretraining of image encoders (CsMl, MoCo, SimCLR, BYOL)", "csml");
  app.set_version_flag("-v,--version", cat("csml {} ({}, {}, {}, kernels for {})", kVersion, kCommit, kCompiler,
                                           kBuildType, kernel_instructions()));
  app.require_subcommand(1);
  app.footer(
      "csml help COMMAND tells more; source <(csml completion bash) completes commands and flags (zsh too).\n"
      "Exit codes: 0 done, 1 failed, 2 wrong usage, 70 another process of the job is lost or a stop took too long,\n"
      "75 stopped by a signal or --max-hours after a checkpoint.");
  std::vector<std::pair<CLI::App*, Command>> commands;
  const auto add = [&](const char* name, const char* text, const auto& define) {
    CLI::App* command = app.add_subcommand(name, text);
    commands.emplace_back(command, define(*command));
  };
  add("pretrain", "Pretrain an encoder on images without labels",
      [&](CLI::App& command) { return pretrain_command(command, arguments); });
  add("knn", "k-nearest-neighbour accuracy of frozen features", knn_command);
  add("linear", "Linear probe on frozen features", linear_command);
  add("finetune", "Fine-tune on few labels, with self-training on request",
      [&](CLI::App& command) { return finetune_command(command, arguments); });
  add("svm", "Linear support vector machines on frozen features", svm_command);
  add("embed", "Features of a data set into a safetensors file", embed_command);
  add("neighbors", "Exact nearest neighbours inside a data set", neighbors_command);
  add("import", "Weights of other programs, or an exported checkpoint, into a checkpoint", import_command);
  add("export", "An encoder for other programs, or a whole checkpoint as one file", export_command);
  add("inspect", "What a run, a checkpoint, a safetensors file or a data set holds", inspect_command);
  add("pack", "Any data set into a few large files", pack_command);
  add("bench", "Time of kernels, whole steps and the loader", bench_command);
  add("doctor", "What this machine has and lacks for a run, and what to set", doctor_command);
  add("replay", "One step of a run again, or the views of one sample", replay_command);
  add("report", "A run folder into one self-contained report.html", report_command);

  if (const int code = run_about(app, argc, argv); code >= 0) return code;
  if (argc > 1 && argv[1][0] != '-') {
    std::vector<std::string> names;
    for (const auto& [command, execute] : commands) names.push_back(command->get_name());
    if (std::find(names.begin(), names.end(), argv[1]) == names.end()) {
      return failed(2, cat("unknown command {}{}", printable(argv[1], 200),
                           suggestion(argv[1], names, cat("; known are {}", fmt::join(names, ", ")))));
    }
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);
    return failed(2, usage_message(app, e));
  }
  for (const auto& [command, execute] : commands)
    if (command->parsed()) return execute();
  return 2;
}

}  // namespace
}  // namespace csml

int main(int argc, char** argv) {
  csml::prefer_short_waits(argv);
  csml::prepare_process();
  try {
    return csml::run(argc, argv);
  } catch (const csml::UsageError& e) { return csml::failed(2, e.what()); } catch (const csml::Error& e) {
    return csml::failed(1, e.what());
  } catch (const std::bad_alloc&) {
    return csml::failed(1, "out of memory; a smaller batch, queue or data set needs less");
  } catch (const std::system_error& e) {
    if (e.code() != std::errc::resource_unavailable_try_again)
      return csml::failed(1, csml::cat("unexpected failure: {}", e.what()));
    return csml::failed(
        1,
        "no further thread can be made; raise the limit of processes (ulimit -u, or the container's pids "
        "limit) or lower data.workers and train.threads");
  } catch (const std::exception& e) { return csml::failed(1, csml::cat("unexpected failure: {}", e.what())); }
}
