#!/bin/bash
# A loop of built-ins: arithmetic, arrays, string operations, here-strings, functions, read and printf; no child.
#
#     builtins.sh [ROUNDS]
rounds=${1:-60}
digest=7
declare -A counts

mix() {
    local text=$1 i code
    for ((i = 0; i < ${#text}; i++)); do
        printf -v code '%d' "'${text:i:1}"
        ((digest = (digest * 31 + code) % 1000000007))
    done
}

for ((round = 1; round <= rounds; round++)); do
    seed=$round
    words=()
    for ((i = 0; i < 300; i++)); do
        ((seed = (seed * 1103515245 + 12345) % 2147483648))
        printf -v word 'w%x' $((seed % 211))
        words+=("$word")
        ((counts[$word] += 1))
    done
    while read -r -d ' ' word; do
        [[ $word =~ ^w[0-9a-f]+$ ]] || exit 1
    done <<<"${words[*]} "
    mix "${words[*]:0:40}"
    mix "${words[*]//w1/x}"
    ((round % 10)) || echo "round $round digest $digest"
done
total=0
for word in "${!counts[@]}"; do ((total += counts[$word])); done
echo "words ${#counts[@]} total $total digest $digest"
