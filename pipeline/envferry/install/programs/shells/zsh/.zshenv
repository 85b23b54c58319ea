# What `envferry shell` starts zsh with: the user's own files, from where they are, then .zshrc beside this one.
_envferry_files=$ZDOTDIR
if [[ -n ${_envferry_zdotdir-} ]]; then ZDOTDIR=$_envferry_zdotdir; else unset ZDOTDIR; fi
unset _envferry_zdotdir
if [[ -f ${ZDOTDIR:-$HOME}/.zshenv ]]; then . ${ZDOTDIR:-$HOME}/.zshenv; fi
_envferry_own=${ZDOTDIR-}
ZDOTDIR=$_envferry_files
