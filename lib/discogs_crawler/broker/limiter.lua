--[[
The quota of one identity: one call, one atomic step, by the server's clock.

An identity is in one of three states, and may be told to pause in any of them:

    nothing is known,        429, or an outage
    or from another time     (in any state)
             |                     |
             |                     v
             |                   pause
             v                     |
         +-------+                 |
         | probe | <---------------+     one request at a time; the others wait for its answer
         +-------+
             | it passes
             v
        +---------+
        | reserve | <--------------+     RESERVE permits are kept back
        +---------+                |
             | a window later      | the API has counted a request that is not ours
             v                     |
         +-------+                 |
         | haste | ----------------+     all permits are lent
         +-------+

Permits are lent at HASTE times the average pace at most, in every state. A reserve that began
before a probe goes on during it.

KEYS[1] is the start of the name of every key here, `{PREFIX}:rate:IDENTITY`; the braces are a
hash tag: all keys of one PREFIX lie in one slot of a cluster. Times are epoch seconds.

  :permits   sorted set  name of a permit -> when it is free. While its request is under way: two
                         windows after it was lent; then one window after the answer.
  :foreign   sorted set  a number -> until when we go without one permit, because the API has
                         counted a request that is not ours
  :state     hash        limit         requests in a window, as the API last said
                         penalty       by how much we stay below it since a 429
                         penalised     when the penalty last changed
                         probe         why but one request at a time is lent: start, quota, outage
                         probe_name    the permit of the probe that is under way
                         probe_until   when we stop waiting for it
                         paused_until  when the next probe may be lent
                         pause         length of the last pause; 0 after a probe that passed
                         reserve_until until when RESERVE permits are kept back
                         last_lent     when the last permit was lent
                         foreign       number of the last member of :foreign

A permit that is free stays in its set for one window more: see `count`.

ARGV: command, seconds to add to the server's clock, the window in seconds, then what the
command's function takes.
]]

-- Without a word from the API: what it allows without a token.
local UNKNOWN_LIMIT = 25

-- The API's counters lag, and a foreign request is seen only after the fact.
local RESERVE = 3

-- In windows: the rest of a penalty is forgiven after as many without a 429; the first and the
-- longest pause after a 429 and in an outage; the longest that an API may ask for; what is
-- forgotten of an identity that nobody uses.
local FORGIVEN = 60
local FIRST_PAUSE = { quota = 1 / 6, outage = 1 }
local LONGEST_PAUSE = { quota = 1, outage = 15 }
local LONGEST_REQUEST = 120
local FORGOTTEN = 1440

-- At most this many times as fast as the limit on average: what comes in bursts comes back in
-- bursts, and sees nothing of a second user in between. Costs nothing (1.2 costs 2 %).
local HASTE = 2

local call = redis.call
local permits, foreign, state = KEYS[1] .. ':permits', KEYS[1] .. ':foreign', KEYS[1] .. ':state'

local time = call('TIME')
local now = time[1] + time[2] / 1e6 + ARGV[2]
local window = tonumber(ARGV[3])

local function number(field)
    local value = tonumber(call('HGET', state, field) or 0)
    return value == value and value or 0 -- nan is a number that somebody else wrote
end

local function text(seconds)
    return string.format('%.6f', seconds)
end

local function set(field, value)
    call('HSET', state, field, type(value) == 'number' and text(value) or value)
end

local function keep()
    for _, key in ipairs({ permits, foreign, state }) do
        call('PEXPIRE', key, math.ceil(FORGOTTEN * window * 1000))
    end
end

-- Permits that were not free at `since`: no fewer than what the API may have counted then.
local function count(since)
    return call('ZCOUNT', permits, '(' .. text(since), '+inf'),
        call('ZCOUNT', foreign, '(' .. text(since), '+inf')
end

local function next_free()
    local soonest = now + window
    for _, key in ipairs({ permits, foreign }) do
        local row =
            call('ZRANGEBYSCORE', key, '(' .. text(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
        soonest = math.min(soonest, tonumber(row[2]) or soonest)
    end
    return soonest
end

-- Nothing known, or known from another time: the next request tells how much is left.
local function begin()
    call('DEL', permits, foreign, state)
    set('probe', 'start')
end

-- A clock that was set back would make everybody wait for as long; so would times beyond those that
-- are ever set here.
local function begin_if_needed()
    if call('EXISTS', state) == 0 or number('last_lent') > now + 1
        or number('paused_until') > now + (LONGEST_REQUEST + 1) * window
        or number('probe_until') > now + 2 * window
        or call('ZCOUNT', permits, text(now + 3 * window), '+inf') > 0
        or call('ZCOUNT', foreign, text(now + 2 * window), '+inf') > 0 then
        begin()
    end
end

local function limit()
    local allowed = number('limit')
    if allowed < 1 then
        return UNKNOWN_LIMIT
    end
    if number('penalty') > 0 and now - number('penalised') >= FORGIVEN * window then
        set('penalty', number('penalty') - 1)
        set('penalised', now)
    end
    return math.max(1, allowed - number('penalty'))
end

local function lasts(state_until)
    return number(state_until) > now
end

local function begin_reserve()
    set('reserve_until', now + window)
end

-- When a permit can be had, as far as one can tell now.
local function ready(cap)
    if lasts('paused_until') then
        return number('paused_until')
    end
    if lasts('probe_until') then
        return now + window / 120
    end
    local ours, others = count(now)
    local room = limit()
    if lasts('reserve_until') then
        room = math.max(1, room - RESERVE)
    end
    if ours + others >= room or (cap > 0 and ours >= cap) then
        return next_free()
    end
    return number('last_lent') + window / (HASTE * room)
end

local commands = {}

-- lend(name, cap): a permit of that name; cap is our own limit, 0 for none. Answers
-- {1, now, why it is a probe} or {0, seconds to wait}.
function commands.lend(name, cap)
    begin_if_needed()
    call('ZREMRANGEBYSCORE', permits, '-inf', text(now - window))
    call('ZREMRANGEBYSCORE', foreign, '-inf', text(now - window))
    local at = ready(tonumber(cap))
    if at > now then
        return { 0, text(at - now) }
    end
    call('ZADD', permits, text(now + 2 * window), name)
    set('last_lent', now)
    local why = call('HGET', state, 'probe') or ''
    if why ~= '' then
        set('probe_name', name)
        set('probe_until', now + window)
    end
    keep()
    return { 1, text(now), why }
end

local function probe_ends(name, passed)
    if call('HGET', state, 'probe_name') ~= name then
        return
    end
    set('probe_until', 0)
    if passed then
        call('HDEL', state, 'probe', 'probe_name')
        set('pause', 0)
        begin_reserve()
    end
end

-- answered(name, lent, limit, remaining, sense): an answer has come. limit is 0 if it did not say;
-- sense is `good`, `poor` (it was an error) or `bad` (it told us to go away).
function commands.answered(name, lent, allowed, remaining, sense)
    call('ZADD', permits, text(now + window), name)
    if call('EXISTS', state) == 0 then
        keep()
        return 0
    end
    allowed, remaining = tonumber(allowed), tonumber(remaining)
    if allowed > 0 then
        set('limit', allowed)
        local ours, others = count(lent)
        for _ = 1, math.min(allowed, allowed - remaining - ours - others) do
            call('ZADD', foreign, text(now + window), call('HINCRBY', state, 'foreign', 1))
            begin_reserve()
        end
    end
    local why = call('HGET', state, 'probe')
    probe_ends(name, sense == 'good' or (sense == 'poor' and allowed > 0 and why ~= 'outage'))
    keep()
    return 0
end

-- lost(name): no answer came; the API may still count the request for a while.
function commands.lost(name)
    call('ZADD', permits, text(now + 2 * window), name)
    keep()
    probe_ends(name, false)
    return 0
end

-- unused(name): no request was sent.
function commands.unused(name)
    call('ZREM', permits, name)
    probe_ends(name, false)
    return 0
end

-- pause(why, seconds): everybody stops, then one probe. `seconds` is the least that the API asked
-- for, or 0. Answers how long. One that falls into a pause belongs to what caused that pause.
function commands.pause(why, seconds)
    begin_if_needed()
    local left = number('paused_until') - now
    local asked = math.min(tonumber(seconds), LONGEST_REQUEST * window)
    local pause = left
    if left <= 0 then
        pause = math.max(2 * number('pause'), FIRST_PAUSE[why] * window)
        pause = math.min(pause, LONGEST_PAUSE[why] * window)
        set('pause', pause)
        if why == 'quota' then
            set('penalty', math.min(number('penalty') + 1, math.max(0, number('limit') - 1)))
            set('penalised', now)
        end
        set('probe', why)
        call('HDEL', state, 'probe_name', 'probe_until')
    end
    pause = math.max(pause, asked)
    set('paused_until', now + pause)
    keep()
    return text(pause)
end

-- status(cap): limit, permits that are not free, foreign ones, seconds of pause left.
function commands.status(cap)
    local ours, others = count(now)
    local allowed = number('limit')
    if allowed > 0 then
        allowed = limit()
    end
    if tonumber(cap) > 0 and allowed > 0 then
        allowed = math.min(allowed, tonumber(cap))
    end
    local left = math.max(0, number('paused_until') - now)
    return { allowed, ours, others, text(left) }
end

return commands[ARGV[1]](unpack(ARGV, 4))
