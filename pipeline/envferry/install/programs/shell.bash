# What `envferry shell` starts bash with: the user's own file may have changed PATH and the prompt.
if [ -f ~/.bashrc ]; then . ~/.bashrc; fi
PATH=$CONDA_PREFIX/bin:$PATH
PS1=$CONDA_PROMPT_MODIFIER${PS1-'\w\$ '}
