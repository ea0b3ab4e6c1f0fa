-- Tables, strings, closures, coroutines and the garbage collector at work; prints a digest that depends on all.
--
--     tables.lua [ROUNDS]

local rounds = tonumber(arg and arg[1]) or 60
local digest = 0

local function mix(text)
    for i = 1, #text do
        digest = (digest * 31 + text:byte(i)) & 0xffffffffffff
    end
end

-- A coroutine that yields the words of a made-up text.
local function words(seed)
    return coroutine.wrap(function()
        for i = 1, 2000 do
            seed = (seed * 1103515245 + 12345) & 0x7fffffff
            coroutine.yield(string.format("w%x", seed % 997))
        end
    end)
end

for round = 1, rounds do
    local counts, order = {}, {}
    for word in words(round) do
        if not counts[word] then
            order[#order + 1] = word
        end
        counts[word] = (counts[word] or 0) + 1
    end
    table.sort(order, function(a, b)
        if counts[a] ~= counts[b] then
            return counts[a] > counts[b]
        end
        return a < b
    end)
    for i = 1, #order do
        mix(order[i] .. counts[order[i]])
    end
    mix((table.concat(order, ","):gsub("w1", "W%0")))
    collectgarbage("step")
    if round % 10 == 0 then
        print(string.format("round %d digest %x", round, digest))
    end
end
local file = assert(io.tmpfile())
for i = 1, 20000 do
    file:write(i, " ", i * i, "\n")
end
file:seek("set")
local lines, sum = 0, 0
for line in file:lines() do
    lines = lines + 1
    sum = sum + tonumber(line:match(" (%d+)$"))
end
print("lines", lines, "sum", sum)
print(string.format("digest %x", digest))
