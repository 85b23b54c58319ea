#!/bin/sh
# Slurm's Prolog: what a job asks for is on the node's own disk before the job starts.
#
#   sbatch --comment envferry:torch@stable job.sh       or several: envferry:torch@stable,jax@2026-11
#
# In slurm.conf: Prolog=/etc/slurm/prolog.sh, PrologFlags=Alloc, and a BatchStartTimeout and PrologEpilogTimeout that
# are longer than an installation. Settings (registry, trusted keys) are those of /etc/envferry.
#
# A job that asks for what does not exist, or is not signed, starts without it: its own `envferry run` says so. A node
# that cannot take an environment (space, driver, glibc: exit code 11) fails here, so that Slurm drains it and runs the
# job elsewhere.

# The site's settings, here and not in variables: slurmd hands a prolog none of its own, and some that come from the job.
checks=no # yes: the first job on a node also waits for the environment's own checks, such as imports
tries=120 # how often to try again, every 5 seconds, while another job's prolog installs the same environment

set -u
PATH=/usr/local/bin:/opt/envferry/bin:/usr/bin:/bin
export PATH
LC_ALL=C
export LC_ALL

busy=10 unfit=11 # exit codes of envferry: docs/errors.md
no_check=--no-check
[ "$checks" = no ] || no_check=

say() {
    logger -t envferry-prolog -- "job ${SLURM_JOB_ID:-?}: $1" 2>/dev/null || printf '%s\n' "$1" >&2
}

# is_ref WORD: NAME@TAG, NAME@ID or NAME. Whoever submits a job writes this, and root runs it.
is_ref() {
    case $1 in
        '' | -* | .* | *[!A-Za-z0-9._@-]* | *@*@* | *@ | @*) return 1 ;;
    esac
}

# install REF: wait while another job's prolog installs the same environment.
install() {
    left=$tries
    while :; do
        said=$(envferry install --quiet --unless-current ${no_check:+"$no_check"} "$1" 2>&1 </dev/null)
        code=$?
        left=$((left - 1))
        [ "$code" = "$busy" ] && [ "$left" -gt 0 ] || break
        sleep 5
    done
    [ "$code" = 0 ] || say "$1: exit code $code: $(printf %s "$said" | tr '\n' ' ' | cut -c 1-400)"
    return "$code"
}

wanted=${SLURM_JOB_COMMENT-}
case $wanted in
    envferry:*) wanted=${wanted#envferry:} ;;
    *) exit 0 ;;
esac

set -f
IFS=,
for ref in $wanted; do
    unset IFS
    if ! is_ref "$ref"; then
        say "not a valid ref in the job's comment"
        continue
    fi
    install "$ref"
    [ $? != "$unfit" ] || exit 1
done
exit 0
