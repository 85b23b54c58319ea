# What `envferry shell` starts zsh with: the user's own files, from where they are, then .zshrc beside this one.
_envferry_files=$ZDOTDIR
if [[ -n ${ENVFERRY_ZDOTDIR-} ]]; then ZDOTDIR=$ENVFERRY_ZDOTDIR; else unset ZDOTDIR; fi
unset ENVFERRY_ZDOTDIR
if [[ -f ${ZDOTDIR:-$HOME}/.zshenv ]]; then . ${ZDOTDIR:-$HOME}/.zshenv; fi
_envferry_own=${ZDOTDIR-}
ZDOTDIR=$_envferry_files
