"""What the shared ticket store runs inside Valkey: compare, then set, with nobody in between.

Decides which keys there are and keeps them in step; which ticket follows which is told. All keys
begin with KEYS[1], whose braces put them on one node of a cluster. Of a key per ticket:

    t:<tenant>/<id>      hash: v version, j JSON, k kept version, r recorded version
    b:<tenant>/<binding> id of its newest ticket
    s:<tenant>/<subject> set of ids of its live tickets
    p:<tenant>, p:<tenant>/<agent>   sets of ids of the pending ones
    live, ended          sorted sets of <tenant>/<id> by deadline, by end
    unsettled            set of <tenant>/<id>
    mark                 newest time; run: the server's run id; replicated: it had replicas
    changes              stream of what listeners are told
"""

from __future__ import annotations

from typing import Final

#: How many changes a replica may miss while it is cut off.
_CHANGES: Final = 2_000

#: The server that runs this, and the one that the tickets were last written on.
_RUN: Final = """
local root = KEYS[1]
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
"""

#: ARGV[1] JSON {guards [[key, version]], slot [key, id]?, subject [key, [id]]?,
#: room [agent key, most, tenant key, most]?, writes [...], writer, run?}. Answers {word, detail}.
#: 1. a server that lost nothing 2. nothing read has changed since 3. room 4. write.
COMMIT: Final = (
    _RUN
    + f"""
local plan = cjson.decode(ARGV[1])
local known = redis.call('GET', root .. 'run')
if plan.run then  -- 1: this is the repair itself
  if plan.run ~= run then return {{'restarted', run}} end
  redis.call('SET', root .. 'run', run)
elseif not known then
  redis.call('SET', root .. 'run', run)
elseif known ~= run then
  return {{'restarted', run}}
end
for _, guard in ipairs(plan.guards) do  -- 2
  if (redis.call('HGET', root .. guard[1], 'v') or '') ~= guard[2] then
    return {{'conflict', ''}}
  end
end
if plan.slot and (redis.call('GET', root .. plan.slot[1]) or '') ~= plan.slot[2] then
  return {{'conflict', ''}}
end
if plan.subject then
  local ids = redis.call('SMEMBERS', root .. plan.subject[1])
  table.sort(ids)
  if table.concat(ids, ' ') ~= plan.subject[2] then return {{'conflict', ''}} end
end
if plan.room then  -- 3
  for i = 1, 3, 2 do
    local pending = redis.call('SCARD', root .. plan.room[i])
    for _, write in ipairs(plan.writes) do
      if write.state ~= 'pending' then
        pending = pending - redis.call('SISMEMBER', root .. plan.room[i], write.id)
      end
    end
    if pending >= tonumber(plan.room[i + 1]) then
      return {{'full', i == 1 and 'agent' or 'tenant'}}
    end
  end
end
for _, write in ipairs(plan.writes) do  -- 4
  local member = write.tenant .. '/' .. write.id
  redis.call('HSET', root .. 't:' .. member, 'v', write.version, 'j', write.json)
  local pending, live = write.state == 'pending', write.deadline ~= ''
  local of_agent = root .. 'p:' .. write.tenant .. '/' .. write.agent
  redis.call(pending and 'SADD' or 'SREM', root .. 'p:' .. write.tenant, write.id)
  redis.call(pending and 'SADD' or 'SREM', of_agent, write.id)
  local of_subject = root .. 's:' .. write.tenant .. '/' .. write.subject
  redis.call(live and 'SADD' or 'SREM', of_subject, write.id)
  if live then
    redis.call('ZADD', root .. 'live', write.deadline, member)
  else
    redis.call('ZREM', root .. 'live', member)
    redis.call('ZADD', root .. 'ended', write.at, member)
  end
  if write.version == '0' then
    redis.call('SET', root .. 'b:' .. write.tenant .. '/' .. write.binding, write.id)
  end
  redis.call('SADD', root .. 'unsettled', member)
  if tonumber(write.at) > tonumber(redis.call('GET', root .. 'mark') or '0') then
    redis.call('SET', root .. 'mark', write.at)
  end
  redis.call('XADD', root .. 'changes', 'MAXLEN', '~', {_CHANGES}, '*',
             'w', plan.writer, 'j', write.json)
end
local replicas = string.match(redis.call('INFO', 'replication'), 'connected_slaves:(%d+)')
if tonumber(replicas or '1') > 0 then
  redis.call('SET', root .. 'replicated', '1')
end
return {{'done', ''}}
"""
)

#: ARGV slot key, subject key, tenant. Answers {id in the slot, ids of the subject, {{j, k, r}}}:
#: one row for each of the ids, the slot's first.
AROUND: Final = """
local root = KEYS[1]
local slot = redis.call('GET', root .. ARGV[1]) or ''
local subject = redis.call('SMEMBERS', root .. ARGV[2])
local rows = {}
for _, id in ipairs({slot, unpack(subject)}) do
  rows[#rows + 1] = redis.call('HMGET', root .. 't:' .. ARGV[3] .. '/' .. id, 'j', 'k', 'r')
end
return {slot, subject, rows}
"""

#: ARGV member, kept or '', recorded or ''. A mark never goes back, nor ahead of the ticket.
SETTLE: Final = """
local root, key = KEYS[1], KEYS[1] .. 't:' .. ARGV[1]
local version = tonumber(redis.call('HGET', key, 'v') or '-1')
if version < 0 then return 0 end
local least = version
for i, field in ipairs({'k', 'r'}) do
  local held = tonumber(redis.call('HGET', key, field) or '-1')
  if ARGV[i + 1] ~= '' then
    held = math.max(held, math.min(tonumber(ARGV[i + 1]), version))
    redis.call('HSET', key, field, string.format('%d', held))
  end
  least = math.min(least, held)
end
if least >= version then redis.call('SREM', root .. 'unsettled', ARGV[1]) end
return 1
"""

#: ARGV triples member, version, slot key. What changed since it was chosen stays.
FORGET: Final = """
local root = KEYS[1]
for i = 1, #ARGV, 3 do
  local key = root .. 't:' .. ARGV[i]
  local same = redis.call('HGET', key, 'v') == ARGV[i + 1]
  if same and redis.call('ZREM', root .. 'ended', ARGV[i]) == 1 then
    redis.call('DEL', key)
    redis.call('SREM', root .. 'unsettled', ARGV[i])
    local slot = root .. ARGV[i + 2]
    local id = string.match(ARGV[i], '/(.*)$')
    if redis.call('GET', slot) == id then redis.call('DEL', slot) end
  end
end
return 1
"""
