#include "apps/completion.h"

#include "engine/text.h"
#include "kernels/check.h"

namespace csml {
namespace {

std::string flags_of(const CLI::App& command) {
  std::string flags;
  for (const CLI::Option* option : command.get_options())
    for (const std::string& name : option->get_lnames()) flags += cat("{}--{}", flags.empty() ? "" : " ", name);
  return flags;
}

}  // namespace

std::string completion_script(const CLI::App& app, const std::string& shell) {
  if (shell != "bash" && shell != "zsh")
    throw UsageError(
        cat("completion {}: bash or zsh, for example: source <(csml completion bash)", printable(shell, 100)));
  std::string commands, cases;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    commands += cat("{}{}", commands.empty() ? "" : " ", command->get_name());
    cases += cat("    {}) words=\"{}\" ;;\n", command->get_name(), flags_of(*command));
  }
  // zsh reads bash's completions through its own compatibility functions.
  const std::string head = shell == "zsh" ? "autoload -U +X compinit && compinit\n"
                                            "autoload -U +X bashcompinit && bashcompinit\n"
                                          : "";
  return cat(R"(# {0} completion of csml; to use it: source <(csml completion {0})
{1}_csml() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{2} help --help --version" -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
    help) words="{2}" ;;
    completion) words="bash zsh" ;;
{3}  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _csml csml
)",
             shell, head, commands, cases);
}

}  // namespace csml
