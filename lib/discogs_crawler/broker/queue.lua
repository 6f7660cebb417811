--[[
The queue of one kind of record: one call, one atomic step.

KEYS[1] is the start of the name of every key here, `{PREFIX}:KIND`; the braces are a hash tag:
all keys of one PREFIX lie in one slot of a cluster. SEG is an id divided by 1,000,000; the bit
of an id in a bitmap is the rest.

  :about               hash        layout: version of this table; generation: random, made with it;
                                   born: when that was, as a stream id;
                                   seen: epoch at which lapsed leases were last looked for;
                                   read: the last result that the ledger has and that was dropped;
                                   store: what holds the records, as the ledger's machine says
  :known               hash        SEG -> number of ids in our hands, wherever they are
  :known:SEG           bitmap      those ids
  :pending:CLASS       hash        SEG -> number of ids waiting to be claimed
  :pending:CLASS:SEG   bitmap      those ids
  :leased              sorted set  id -> epoch at which its lease lapses
  :leases              hash        id -> "TOKEN CLASS OWNER"; TOKEN is "GENERATION.NONCE"
  :holders             hash        "SEG OWNER" -> number of ids leased
  :delayed             sorted set  "ID CLASS" -> epoch at which it is pending again
  :attempts            hash        id -> number of failed attempts, if any
  :lapses              hash        id -> number of leases that lapsed since it was last answered
  :results             stream      answers that the ledger has not read yet; fields as in RESULT
  :branches            hash        SEG -> the branch that alone may claim there
  :frozen              set         SEG whose branch is being merged: nobody may claim there
  :scratch:NAME        bitmap      lives within one call

An id is in exactly one of: a pending bitmap, leased, delayed, results; and then it is known.
Each step moves it from one to the next, whole. Nothing expires by itself.

ARGV: command, seconds to add to the server's clock, a generation in case there is none, the
layout, the classes (highest first, one string), the seconds of a lease, the numbers of lapses from
which an id is suspicious and dead, then what the command's function takes.
]]

local RESULT = {
    'id', 'reason', 'outcome', 'status', 'fetched', 'changed', 'commit', 'failure', 'successor',
}
local SEGMENT_SIZE = 1000000
local SWEEP = 1000 -- ids moved by one call at most: a few milliseconds
local LEAP = 60 -- seconds by which a clock is not set back without a reason
local SPREAD = 6 -- leases' time over which suspicious ids come back

local call = redis.call
local base = KEYS[1]
local about, known, attempts = base .. ':about', base .. ':known', base .. ':attempts'
local leased, leases, holders = base .. ':leased', base .. ':leases', base .. ':holders'
local delayed, results = base .. ':delayed', base .. ':results'
local lapses = base .. ':lapses'
local branches, frozen = base .. ':branches', base .. ':frozen'
local wanted, common, gained =
    base .. ':scratch:wanted', base .. ':scratch:common', base .. ':scratch:gained'

local time = call('TIME')
local now = time[1] + time[2] / 1e6 + ARGV[2]
local layout, generation = ARGV[4], nil
local lease_s, suspicious, fatal = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])

local classes = {}
for class in string.gmatch(ARGV[5], '%S+') do
    classes[#classes + 1] = class
end

local function pending(class)
    return base .. ':pending:' .. class
end

-- Ids by bit ------------------------------------------------------------------------------------

local function place(id)
    local seg = math.floor(id / SEGMENT_SIZE)
    return string.format('%d', seg), id - seg * SEGMENT_SIZE
end

-- Add n, which may be negative (and -0), to the number of ids in a bitmap; it goes with the last.
local function add(hash, seg, n)
    if call('HINCRBY', hash, seg, string.format('%d', n)) <= 0 then
        call('HDEL', hash, seg)
        call('DEL', hash .. ':' .. seg)
    end
end

local function set_bit(hash, id, value)
    local seg, bit = place(id)
    if call('SETBIT', hash .. ':' .. seg, bit, value) ~= value then
        add(hash, seg, value == 1 and 1 or -1)
    end
end

-- Add the ids of the bitmap `bits` to those of a segment.
local function unite(hash, seg, bits)
    local bitmap = hash .. ':' .. seg
    call('BITOP', 'OR', bitmap, bitmap, bits)
    add(hash, seg, call('BITCOUNT', bits))
end

-- Leave in `wanted` those ids that were not known, and know them.
-- BITOP reads a shorter bitmap as if zeros followed, so NOT would lose what lies beyond its end;
-- XOR with what they have in common does not.
local function take_unknown(seg)
    call('BITOP', 'AND', common, wanted, known .. ':' .. seg)
    call('BITOP', 'XOR', wanted, wanted, common)
    unite(known, seg, wanted)
end

-- The pending bitmaps of all classes below one.
local function lower(class)
    local found, below = {}, false
    for _, name in ipairs(classes) do
        if below then found[#found + 1] = pending(name) end
        below = below or name == class
    end
    return found
end

-- Make pending in a class what is in `gained` and, of `wanted`, what is unknown or waits in a lower
-- class. Number of them.
local function queue_wanted(class, seg)
    for _, hash in ipairs(lower(class)) do
        local bitmap = hash .. ':' .. seg
        call('BITOP', 'AND', common, wanted, bitmap)
        local number = call('BITCOUNT', common)
        if number > 0 then
            call('BITOP', 'XOR', bitmap, bitmap, common)
            call('BITOP', 'OR', gained, gained, common)
            add(hash, seg, -number)
        end
    end
    take_unknown(seg)
    call('BITOP', 'OR', gained, gained, wanted)
    unite(pending(class), seg, gained)
    local number = call('BITCOUNT', gained)
    call('DEL', wanted, common, gained)
    return number
end

-- Leases ----------------------------------------------------------------------------------------

local function hold(seg, owner, n)
    local field = seg .. ' ' .. owner
    if call('HINCRBY', holders, field, n) <= 0 then
        call('HDEL', holders, field)
    end
end

-- The class of the lease of an id; nil if `token` is no longer its token or it has lapsed.
local function class_of(id, token)
    local lease = call('HGET', leases, id)
    if lease and string.sub(lease, 1, #token + 1) == token .. ' '
        and tonumber(call('ZSCORE', leased, id)) > now then
        return string.match(lease, '^%S+ (%S+)')
    end
end

-- Forget the lease of an id; the class that it had.
local function end_lease(id)
    local class, owner = string.match(call('HGET', leases, id), '^%S+ (%S+) (.*)$')
    call('ZREM', leased, id)
    call('HDEL', leases, id)
    hold((place(id)), owner, -1)
    return class
end

-- Append a result; its fields are those of RESULT, in order.
local function report(values)
    local entry = {}
    for field, name in ipairs(RESULT) do
        entry[2 * field - 1], entry[2 * field] = name, values[field]
    end
    call('XADD', results, '*', unpack(entry))
end

-- A lease of the id has lapsed. The first times it is pending at once. When it may be what kills
-- its workers it comes back at a time of its own, so that no others lapse with it time and again;
-- and when it certainly is it is dead.
local function lapse(id, class)
    local number = call('HINCRBY', lapses, id, 1)
    if number < suspicious then
        set_bit(pending(class), id, 1)
    elseif number < fatal then
        local chance = tonumber(string.sub(redis.sha1hex(id .. ' ' .. number), 1, 6), 16)
        call('ZADD', delayed, now + chance % (SPREAD * lease_s), id .. ' ' .. class)
    else
        call('HDEL', lapses, id)
        call('HDEL', attempts, id)
        local failure = 'lapsed ' .. number .. ' times: every worker that took it was gone'
        report({id, class, 'dead', 0, string.format('%d', now), 0, '', failure, 0})
    end
end

-- If the clock was set back, leases and delays end as long after now as they would have before.
local function follow_clock()
    local back = tonumber(call('HGET', about, 'seen') or now) - now
    if back > LEAP then
        for _, key in ipairs({leased, delayed}) do
            local rows = call('ZRANGE', key, 0, -1, 'WITHSCORES')
            for i = 1, #rows, 2 do
                call('ZADD', key, math.min(rows[i + 1], math.max(now, rows[i + 1] - back)), rows[i])
            end
        end
    end
    call('HSET', about, 'seen', string.format('%.6f', now))
end

-- Make lapsed leases and delays that are over pending again.
local function sweep()
    follow_clock()
    for _, id in ipairs(call('ZRANGEBYSCORE', leased, '-inf', now, 'LIMIT', 0, SWEEP)) do
        lapse(id, end_lease(id))
    end
    for _, member in ipairs(call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, SWEEP)) do
        local id, class = string.match(member, '^(%d+) (.*)$')
        call('ZREM', delayed, member)
        set_bit(pending(class), id, 1)
    end
end

-- The number of ids that other owners have leased, by segment.
local function leased_by_others(owner)
    local others, rows = {}, call('HGETALL', holders)
    for i = 1, #rows, 2 do
        local seg, name = string.match(rows[i], '^(%d+) (.*)$')
        if name ~= owner then
            others[seg] = (others[seg] or 0) + rows[i + 1]
        end
    end
    return others
end

-- May a worker of this branch ('' is main) claim there? A branch takes an idle segment.
local function is_open(seg, branch, others)
    local owner = call('HGET', branches, seg) or ''
    return call('SISMEMBER', frozen, seg) == 0
        and (owner == branch or (owner == '' and not others[seg]))
end

-- Of the segments with pending ids of a class the one to work on: one that nobody else is in,
-- then the one we were in, then the one with the fewest leases, then the lowest.
local function choose(class, allowed, branch, preferred, others)
    local best, best_rank
    for _, seg in ipairs(call('HKEYS', pending(class))) do
        if (not next(allowed) or allowed[seg]) and is_open(seg, branch, others) then
            local rank = (others[seg] and 1e10 or 0) + (seg == preferred and 0 or 1e9)
                + math.min(others[seg] or 0, 99999) * 1e3 + seg
            if not best or rank < best_rank then
                best, best_rank = seg, rank
            end
        end
    end
    return best
end

-- Remove the lowest ids from a segment.
local function take(class, seg, number)
    local bitmap, ids, from = pending(class) .. ':' .. seg, {}, 0
    while #ids < number do
        local bit = call('BITPOS', bitmap, 1, from)
        if bit < 0 or bit >= SEGMENT_SIZE or seg * SEGMENT_SIZE + bit == 0 then
            call('HSET', pending(class), seg, #ids) -- somebody else has been at the bitmap
            break
        end
        call('SETBIT', bitmap, bit, 0)
        ids[#ids + 1] = string.format('%d', seg * SEGMENT_SIZE + bit)
        from = math.floor(bit / 8)
    end
    add(pending(class), seg, -#ids)
    return ids
end

-- Whether one stream id (MILLISECONDS-NUMBER) comes after another.
local function is_later(one, other)
    local ms, number = string.match(one, '^(%d+)-(%d+)$')
    local other_ms, other_number = string.match(other, '^(%d+)-(%d+)$')
    if ms ~= other_ms then return tonumber(ms) > tonumber(other_ms) end
    return tonumber(number) > tonumber(other_number)
end

-- Make a generation. What is left of keys that have lost their `:about` belongs to nobody.
local function begin()
    for _, seg in ipairs(call('HKEYS', known)) do call('DEL', known .. ':' .. seg) end
    for _, class in ipairs(classes) do
        local hash = pending(class)
        for _, seg in ipairs(call('HKEYS', hash)) do call('DEL', hash .. ':' .. seg) end
        call('DEL', hash)
    end
    call('DEL', about, known, leased, leases, holders, delayed, attempts, lapses, results)
    call('DEL', branches, frozen)
    generation = ARGV[3]
    local born = string.format('%d-0', time[1] * 1000 + math.floor(time[2] / 1000))
    call('HSET', about, 'layout', layout, 'generation', generation, 'born', born)
end

-- Commands --------------------------------------------------------------------------------------

local commands = {}

-- CLASS SEG OFFSET BITS: queue those of the ids whose bits are set that are unknown or wait in a
-- lower class; BITS begin at byte OFFSET of the segment. Number queued.
function commands.push(class, seg, offset, bits)
    call('SETRANGE', wanted, offset, bits)
    return queue_wanted(class, seg)
end

-- CLASS SEG OFFSET BITS: the number of ids that a push would queue.
function commands.count(class, seg, offset, bits)
    call('SETRANGE', wanted, offset, bits)
    call('BITOP', 'AND', common, wanted, known .. ':' .. seg)
    local number = call('BITCOUNT', wanted) - call('BITCOUNT', common)
    for _, hash in ipairs(lower(class)) do
        call('BITOP', 'AND', common, wanted, hash .. ':' .. seg)
        number = number + call('BITCOUNT', common)
    end
    call('DEL', wanted, common)
    return number
end

-- SEG OFFSET BITS: push to the highest class; delayed ids move there too.
function commands.promote(seg, offset, bits)
    call('SETRANGE', wanted, offset, bits)
    for _, member in ipairs(call('ZRANGE', delayed, 0, -1)) do
        local id_seg, bit = place(string.match(member, '^%d+'))
        if id_seg == seg and call('GETBIT', wanted, bit) == 1 then
            call('ZREM', delayed, member)
            call('SETBIT', gained, bit, 1)
        end
    end
    return queue_wanted(classes[1], seg)
end

-- OWNER NONCE NUMBER BRANCH PREFERRED [SEG ...]: lease the lowest ids of one segment of the highest
-- class. {} or {token, class, SEG, ids, attempts}.
function commands.claim(owner, nonce, number, branch, preferred, ...)
    sweep()
    local allowed, others = {}, leased_by_others(owner)
    for _, seg in ipairs({...}) do allowed[seg] = true end
    for _, class in ipairs(classes) do
        local seg = choose(class, allowed, branch, preferred, others)
        local ids = seg and take(class, seg, tonumber(number)) or {}
        if ids[1] then
            local token, scores, texts = generation .. '.' .. nonce, {}, {}
            for i, id in ipairs(ids) do
                scores[2 * i - 1], scores[2 * i] = now + lease_s, id
                texts[2 * i - 1], texts[2 * i] = id, token .. ' ' .. class .. ' ' .. owner
            end
            call('ZADD', leased, unpack(scores))
            call('HSET', leases, unpack(texts))
            hold(seg, owner, #ids)
            if branch ~= '' then call('HSET', branches, seg, branch) end
            return {token, class, seg, ids, call('HMGET', attempts, unpack(ids))}
        end
    end
    return {}
end

-- Call `act` with each id of [ID TOKEN ...] that is still leased with its token; those ids.
local function each_ours(args, act)
    local ours = {}
    for i = 1, #args, 2 do
        if class_of(args[i], args[i + 1]) then
            act(args[i])
            ours[#ours + 1] = args[i]
        end
    end
    return ours
end

-- [ID TOKEN ...]: extend what is still leased with that token; those ids.
function commands.renew(...)
    return each_ours({...}, function(id) call('ZADD', leased, now + lease_s, id) end)
end

-- [ID TOKEN ...]: end leases and make their ids pending; those ids.
function commands.give_back(...)
    return each_ours({...}, function(id) set_bit(pending(end_lease(id)), id, 1) end)
end

-- [TOKEN and the fields of RESULT ...]: end leases and report their results; those ids.
function commands.complete(...)
    local values, ours = {...}, {}
    for i = 1, #values, #RESULT + 1 do
        local token, id = values[i], values[i + 1]
        if class_of(id, token) then
            end_lease(id)
            call('HDEL', attempts, id)
            call('HDEL', lapses, id)
            report({unpack(values, i + 1, i + #RESULT)})
            ours[#ours + 1] = id
        end
    end
    return ours
end

-- ID TOKEN SECONDS FAILED: end the lease; pending again after SECONDS; FAILED (0 or 1) attempts.
function commands.delay(id, token, seconds, failed)
    local class = class_of(id, token)
    if not class then return 0 end
    end_lease(id)
    call('HDEL', lapses, id)
    call('ZADD', delayed, now + seconds, id .. ' ' .. class)
    if failed == '1' then call('HINCRBY', attempts, id, 1) end
    return 1
end

-- AFTER NUMBER: the generation, and the results after a stream id.
function commands.results(after, number)
    return {generation, call('XRANGE', results, '(' .. after, '+', 'COUNT', number)}
end

-- GENERATION UP_TO: drop results up to a stream id; the ledger has them. Number (call again).
function commands.forget(of_generation, up_to)
    if of_generation ~= generation then return 0 end
    local read = call('XRANGE', results, '-', up_to, 'COUNT', SWEEP)
    for _, entry in ipairs(read) do
        call('XDEL', results, entry[1])
        set_bit(known, entry[2][2], 0)
    end
    if read[1] then call('HSET', about, 'read', read[#read][1]) end
    return #read
end

-- GENERATION CURSOR: start over if these keys are an older copy, the generation that begins or '':
-- CURSOR is the last result that the ledger has, and here it is neither waiting nor dropped; or
-- these are of another generation than it, and began before it came. So ids that the ledger has
-- done wait here once more. Results that it may not have are kept.
function commands.rewind(of_generation, cursor)
    local since, unread_from = call('HGET', about, 'read'), '(' .. cursor
    if of_generation ~= generation then
        since, unread_from = call('HGET', about, 'born') or since, '-'
    elseif call('XRANGE', results, cursor, cursor)[1] then
        return ''
    end
    if not since or not is_later(cursor, since) then return '' end
    local unread = call('XRANGE', results, unread_from, '+')
    begin()
    for _, entry in ipairs(unread) do
        call('XADD', results, '*', unpack(entry[2]))
        set_bit(known, entry[2][2], 1)
    end
    return generation
end

-- BRANCH: let nobody claim in those of its segments in which nothing is leased; all frozen ones.
function commands.freeze(branch)
    sweep()
    local others, mine = leased_by_others(nil), {}
    local rows = call('HGETALL', branches)
    for i = 1, #rows, 2 do
        if rows[i + 1] == branch and not others[rows[i]] then
            call('SADD', frozen, rows[i])
            mine[#mine + 1] = rows[i]
        end
    end
    return mine
end

-- BRANCH, '1' if it is merged: thaw its frozen segments, and give them up if it is; those.
function commands.release(branch, merged)
    local mine = {}
    for _, seg in ipairs(call('SMEMBERS', frozen)) do
        if call('HGET', branches, seg) == branch then
            call('SREM', frozen, seg)
            if merged == '1' then
                call('HDEL', branches, seg)
            end
            mine[#mine + 1] = seg
        end
    end
    return mine
end

-- The generation.
function commands.check()
    return generation
end

-- Before the command ----------------------------------------------------------------------------

-- The first key that is not what the table above says.
local function foreign_key()
    local expected = {
        [about] = 'hash', [known] = 'hash', [leased] = 'zset', [leases] = 'hash',
        [holders] = 'hash', [delayed] = 'zset', [attempts] = 'hash', [results] = 'stream',
        [branches] = 'hash', [frozen] = 'set',
        [lapses] = 'hash',
    }
    for _, class in ipairs(classes) do expected[pending(class)] = 'hash' end
    for key, kind in pairs(expected) do
        local found = call('TYPE', key).ok
        if found ~= kind and found ~= 'none' then
            return key .. ' is a ' .. found .. ', not a ' .. kind
        end
        if key == known or string.find(key, base .. ':pending:', 1, true) then
            for _, seg in ipairs(found == 'hash' and call('HKEYS', key) or {}) do
                local bitmap = key .. ':' .. seg
                if not string.match(seg, '^%d%d?%d?$') then
                    return key .. ' names a segment that cannot exist'
                elseif call('TYPE', bitmap).ok == 'string'
                    and call('STRLEN', bitmap) > SEGMENT_SIZE / 8 then
                    return bitmap .. ' has more bits than a segment has ids'
                end
            end
        end
    end
end

local is_new = call('EXISTS', about) == 0
if is_new or ARGV[1] == 'check' then
    local problem = foreign_key()
    if problem then return redis.error_reply('FOREIGN ' .. problem) end
end
if is_new then
    begin()
else
    local found = call('HMGET', about, 'layout', 'generation')
    if found[1] ~= layout then
        return redis.error_reply('LAYOUT ' .. (found[1] or 'unknown'))
    end
    generation = found[2]
    if not generation or not string.match(generation, '^%x+$') then
        return redis.error_reply('FOREIGN ' .. about .. ' has no generation of ours')
    end
end
return commands[ARGV[1]](unpack(ARGV, 9))
