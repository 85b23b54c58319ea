if [[ -n $_envferry_own ]]; then export ZDOTDIR=$_envferry_own; else unset ZDOTDIR; fi
unset _envferry_own _envferry_files
if [[ -f ${ZDOTDIR:-$HOME}/.zshrc ]]; then . ${ZDOTDIR:-$HOME}/.zshrc; fi
eval "$ENVFERRY_SHELL_START"
unset ENVFERRY_SHELL_START
PS1=$CONDA_PROMPT_MODIFIER${PS1-'%~ %# '}
