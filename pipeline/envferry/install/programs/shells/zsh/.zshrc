if [[ -n $_envferry_own ]]; then export ZDOTDIR=$_envferry_own; else unset ZDOTDIR; fi
unset _envferry_own _envferry_files
if [[ -f ${ZDOTDIR:-$HOME}/.zshrc ]]; then . ${ZDOTDIR:-$HOME}/.zshrc; fi
eval "$_envferry_start"
unset _envferry_start
PS1=$CONDA_PROMPT_MODIFIER${PS1-'%~ %# '}
