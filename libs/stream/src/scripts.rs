//! Every Lua script, each named for the rule of PROTOCOL.md that it is. What they lean on (a script can read the
//! replication id, Redis refuses an id not greater than the last, emptied streams remember theirs) is tested in
//! `tests/scripts/`.

use std::sync::OnceLock;

use fred::interfaces::LuaInterface;
use fred::prelude::{Client, Value};

use crate::{Error, Result};

/// A script and the name under which the server keeps it, once that is known.
pub(crate) struct Script {
    text: &'static str,
    sha: OnceLock<String>,
}

impl Script {
    const fn new(text: &'static str) -> Self {
        Self { text, sha: OnceLock::new() }
    }

    /// The name under which servers keep it (the same on each: a hash of the text), loading it if that is not known yet.
    pub(crate) async fn sha(&self, client: &Client) -> Result<String> {
        if let Some(sha) = self.sha.get() {
            return Ok(sha.clone());
        }
        self.load(client).await
    }

    /// Loads it into the server's cache, which a restart or a failover empties.
    pub(crate) async fn load(&self, client: &Client) -> Result<String> {
        let sha: String = Box::pin(client.script_load(self.text)).await?;
        Ok(self.sha.get_or_init(|| sha).clone())
    }

    /// Runs it, loading it if the server has lost it.
    pub(crate) async fn run(&self, client: &Client, keys: Vec<String>, args: Vec<Value>) -> Result<Value> {
        match self.once(client, keys.clone(), args.clone()).await {
            Err(Error::NoScript(_)) => {
                self.load(client).await?;
                self.once(client, keys, args).await
            }
            other => other,
        }
    }

    async fn once(&self, client: &Client, keys: Vec<String>, args: Vec<Value>) -> Result<Value> {
        let sha = self.sha(client).await?;
        Ok(Box::pin(client.evalsha(sha.as_str(), keys, args)).await?)
    }
}

/// R3. KEYS: ctl. ARGV: term, fresh random value, 1 to be challenged although certified.
pub(crate) static ANNOUNCE: Script = Script::new(
    r"
local c = redis.call('HMGET', KEYS[1], 'server', 'last', 'doubt', 'term', 'passed')
local id = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
if c[4] and tonumber(c[4]) > tonumber(ARGV[1]) then return {'STALE'} end
redis.call('HSET', KEYS[1], 'term', ARGV[1])
local certified = c[1] == id and ARGV[3] ~= '1'
if not certified then redis.call('HSET', KEYS[1], 'challenge', ARGV[2]) end
return {certified and 'CERTIFIED' or 'CHALLENGE', c[2] or '0', c[3] or '0', c[5] or '0', id}",
);

/// R19: the whole pass that a certificate asks for is over. KEYS: ctl. ARGV: term, the certificate's number.
pub(crate) static PASS_OVER: Script = Script::new(
    r"
local c = redis.call('HMGET', KEYS[1], 'term', 'doubt')
if c[1] ~= ARGV[1] or c[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'passed', ARGV[2])
return 1",
);

/// R4. KEYS: ctl, set of streams, streams. ARGV: number, term, replid and challenge as answered by R3. What stands at the name of a
/// stream and can be none of ours (of another kind, or with a last id that no number of ours reaches) is moved aside; answers OK
/// with the names of those.
pub(crate) static CERTIFY: Script = Script::new(
    r"
local c = redis.call('HMGET', KEYS[1], 'last', 'term', 'challenge')
local id = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
local n = tonumber(ARGV[1])
if c[2] and tonumber(c[2]) > tonumber(ARGV[2]) then return {'STALE'} end
if ARGV[3] ~= id or ARGV[4] ~= c[3] then return {'REFUSED'} end
for k = 3, #KEYS do redis.call('SADD', KEYS[2], KEYS[k]) end
local streams = redis.call('SMEMBERS', KEYS[2])
local top = tonumber(c[1] or '0')
local answer = {'OK'}
for _, key in ipairs(streams) do
  local kind, last = redis.call('TYPE', key)['ok'], 0
  if kind == 'stream' then
    local i = redis.call('XINFO', 'STREAM', key)
    for j = 1, #i, 2 do if i[j] == 'last-generated-id' then last = tonumber(string.match(i[j + 1], '%d+')) end end
  end
  if kind ~= 'none' and (kind ~= 'stream' or last > 9007199254740991) then
    redis.call('RENAME', key, key .. ':displaced')
    answer[#answer + 1] = key
  else
    top = math.max(top, last)
  end
end
if n <= top then return {'LOW', string.format('%d', top)} end
for _, key in ipairs(streams) do redis.pcall('XGROUP', 'CREATE', key, 'executors', '0', 'MKSTREAM') end
local t = redis.call('TIME')
redis.call('HSET', KEYS[1], 'server', id, 'last', ARGV[1], 'doubt', ARGV[1], 'term', ARGV[2],
  'certified_at', string.format('%d', t[1] * 1000 + math.floor(t[2] / 1000)))
redis.call('HDEL', KEYS[1], 'challenge')
return answer",
);

/// R6. KEYS: ctl, set of streams, touched streams. ARGV: number, term, then per entry: index of its stream, seq, text.
/// Answers OK with the length of each touched stream.
pub(crate) static PUBLISH: Script = Script::new(
    r"
local c = redis.call('HMGET', KEYS[1], 'server', 'last', 'term')
local id = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
if c[1] ~= id then return {'UNCERTIFIED'} end
local n, term, told = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(c[3] or '0')
if told > term then return {'STALE'} end
if told < term then return {'UNANNOUNCED'} end
if n <= tonumber(c[2] or '0') then return {'PASSED'} end
for k = 3, #KEYS do
  if redis.call('EXISTS', KEYS[k]) == 1 then
    local i = redis.call('XINFO', 'STREAM', KEYS[k])
    for j = 1, #i, 2 do if i[j] == 'last-generated-id' and tonumber(string.match(i[j + 1], '%d+')) >= n then return {'BEHIND', i[j + 1]} end end
  end
end
for k = 3, #KEYS do
  if redis.call('EXISTS', KEYS[k]) == 0 then
    redis.call('XGROUP', 'CREATE', KEYS[k], 'executors', '0', 'MKSTREAM')
    redis.call('SADD', KEYS[2], KEYS[k])
  end
end
for a = 3, #ARGV, 3 do redis.call('XADD', KEYS[2 + tonumber(ARGV[a])], ARGV[1] .. '-' .. ARGV[a + 1], 'e', ARGV[a + 2]) end
redis.call('HSET', KEYS[1], 'last', ARGV[1])
local answer = {'OK'}
for k = 3, #KEYS do answer[#answer + 1] = redis.call('XLEN', KEYS[k]) end
return answer",
);

/// What a certificate looks like to its leader (the one-second tick of R3). KEYS: ctl, streams.
/// Answers whether certified, the term, the last batch, and the length of each stream.
pub(crate) static STATE: Script = Script::new(
    r"
local c = redis.call('HMGET', KEYS[1], 'server', 'term', 'last')
local id = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
local answer = {c[1] == id and 1 or 0, c[2] or '0', c[3] or '0'}
for k = 2, #KEYS do answer[#answer + 1] = redis.call('XLEN', KEYS[k]) end
return answer",
);

/// What both looks begin with: the certificate, and how old it is.
macro_rules! look_head {
    () => {
        r"
local c = redis.call('HMGET', KEYS[1], 'server', 'doubt', 'certified_at')
local id = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
local t = redis.call('TIME')
local age = t[1] * 1000 + math.floor(t[2] / 1000) - tonumber(c[3] or '0')
"
    };
}

/// R8. KEYS: ctl, cancelled. Answers whether certified, doubt, the certificate's age in ms, and the cancelled set, or
/// its size where it has more than 64 members.
pub(crate) static LOOK: Script = Script::new(concat!(
    look_head!(),
    r"local size = redis.call('SCARD', KEYS[2])
return {c[1] == id and 1 or 0, c[2] or '0', string.format('%d', age), size > 64 and size or redis.call('SMEMBERS', KEYS[2])}"
));

/// KEYS: streams. Answers for each the last id that its group was handed: behind it stands what nobody has read.
pub(crate) static HANDED: Script = Script::new(
    r"
local answer = {}
for k = 1, #KEYS do
  if redis.call('EXISTS', KEYS[k]) == 1 then
    for _, g in ipairs(redis.call('XINFO', 'GROUPS', KEYS[k])) do
      local field = {}
      for j = 1, #g, 2 do field[g[j]] = g[j + 1] end
      if field['name'] == 'executors' then answer[k] = field['last-delivered-id'] end
    end
  end
  if not answer[k] then return redis.error_reply('NOGROUP the stream or its group is missing') end
end
return answer",
);

/// R8a, the second question where the set is large. KEYS: ctl, cancelled. ARGV: ids. Answers as LOOK does, of the set those
/// that were asked for: a "not cancelled" holds only as far as the certificate that came with it.
pub(crate) static LOOK_FOR: Script = Script::new(concat!(
    look_head!(),
    r"local members = {}
for a = 1, #ARGV do if redis.call('SISMEMBER', KEYS[2], ARGV[a]) == 1 then members[#members + 1] = ARGV[a] end end
return {c[1] == id and 1 or 0, c[2] or '0', string.format('%d', age), members}"
));

/// R6a. KEYS: ctl, stream. ARGV: newest form of an entry that is known here, ids. Answers UNCERTIFIED, or for each id UNREAD
/// (it is deleted now), DOUBTFUL, {consumer, idle in ms}, or GONE. What the group has not been handed yet nobody has read, in
/// this history; up to `doubt` there may have been another one, and an entry of R19 may have an elder that somebody runs.
pub(crate) static WITHDRAW: Script = Script::new(
    r"
local c = redis.call('HMGET', KEYS[1], 'server', 'doubt')
local id = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
if c[1] ~= id then return {'UNCERTIFIED'} end
local handed
if redis.call('EXISTS', KEYS[2]) == 1 then
  for _, g in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
    local field = {}
    for j = 1, #g, 2 do field[g[j]] = g[j + 1] end
    if field['name'] == 'executors' then handed = field['last-delivered-id'] end
  end
end
if not handed then return redis.error_reply('NOGROUP the stream or its group is missing') end
local function parts(text) local n, s = string.match(text, '(%d+)-(%d+)') return tonumber(n), tonumber(s) end
local function is_ordinary(entry)
  for f = 1, #entry[2], 2 do if entry[2][f] == 'e' then
    local read, e = pcall(cjson.decode, entry[2][f + 1])
    return read and type(e) == 'table' and tonumber(e.v) ~= nil and tonumber(e.v) <= tonumber(ARGV[1]) and not e.again
  end end
  return false
end
local hn, hs = parts(handed)
local answer = {'ANSWERED'}
for a = 2, #ARGV do
  local n, s = parts(ARGV[a])
  local said = 'GONE'
  if n > hn or n == hn and s > hs then
    local found = redis.call('XRANGE', KEYS[2], ARGV[a], ARGV[a])
    if found[1] then
      said = 'DOUBTFUL'
      if n > tonumber(c[2] or '0') and is_ordinary(found[1]) then
        redis.call('XDEL', KEYS[2], ARGV[a])
        said = 'UNREAD'
      end
    end
  else
    local p = redis.call('XPENDING', KEYS[2], 'executors', ARGV[a], ARGV[a], 1)
    if p[1] then said = {p[1][2], p[1][3]} end
  end
  answer[#answer + 1] = said
end
return answer",
);

/// KEYS: ctl, set of streams, stream. ARGV: term, number, ms. Deletes a stream that holds nothing, pending or not, was appended
/// nothing from `number` on, and whose consumers have not been heard of for so long.
/// Its last id is forgotten with it, and is not needed: R6 and R4 take only numbers above ctl.last, which is at least that id
/// (one above it is foreign, and the stream stays), so no id comes again; and where ctl is forgotten too, R1 has drawn every number
/// that follows above all that were.
pub(crate) static RETIRE: Script = Script::new(
    r"
local c = redis.call('HMGET', KEYS[1], 'server', 'term', 'last')
local id = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
if c[1] ~= id then return 'UNCERTIFIED' end
local term, told = tonumber(ARGV[1]), tonumber(c[2] or '0')
if told > term then return 'STALE' end
if told < term then return 'UNANNOUNCED' end
if redis.call('EXISTS', KEYS[3]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[3])
  local field = {}
  for j = 1, #info, 2 do field[info[j]] = info[j + 1] end
  local top = tonumber(string.match(field['last-generated-id'], '%d+'))
  if field['length'] > 0 or top >= tonumber(ARGV[2]) or top > tonumber(c[3] or '0') then return 'USED' end
  for _, g in ipairs(redis.call('XINFO', 'GROUPS', KEYS[3])) do
    local group = {}
    for j = 1, #g, 2 do group[g[j]] = g[j + 1] end
    if group['pending'] > 0 then return 'USED' end
    for _, who in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[3], group['name'])) do
      for j = 1, #who, 2 do if who[j] == 'idle' and who[j + 1] < tonumber(ARGV[3]) then return 'SERVED' end end
    end
  end
  redis.call('DEL', KEYS[3])
end
redis.call('SREM', KEYS[2], KEYS[3])
return 'GONE'",
);

/// R22. KEYS: ctl, set of streams, streams. A missing stream is created with its group from 0 (nothing old can be in it); a
/// missing group on a stream that exists takes the certificate away, so that the leader certifies anew.
pub(crate) static NOGROUP: Script = Script::new(
    r"
local lost = 0
for k = 3, #KEYS do
  if redis.call('EXISTS', KEYS[k]) == 0 then
    redis.call('XGROUP', 'CREATE', KEYS[k], 'executors', '0', 'MKSTREAM')
    redis.call('SADD', KEYS[2], KEYS[k])
  else
    local groups, found = redis.call('XINFO', 'GROUPS', KEYS[k]), false
    for _, g in ipairs(groups) do for j = 1, #g, 2 do if g[j] == 'name' and g[j + 1] == 'executors' then found = true end end end
    if not found then lost = lost + 1 end
  end
end
if lost > 0 then redis.call('HDEL', KEYS[1], 'server') end
return lost",
);

/// R22, where something of another kind stands at a key of ours: it is moved aside, what stood there of ours is lost, and with it
/// the certificate. KEYS: ctl, then pairs of (key, where to move what stands there). ARGV: per pair the kind that it should be.
/// Answers what was moved, as pairs of (key, what it was).
pub(crate) static DISPLACE: Script = Script::new(
    r"
local moved = {}
for a = 1, #ARGV do
  local key = KEYS[2 * a]
  local kind = redis.call('TYPE', key)['ok']
  if kind ~= 'none' and kind ~= ARGV[a] then
    redis.call('RENAME', key, KEYS[2 * a + 1])
    moved[#moved + 1] = key
    moved[#moved + 1] = kind
  end
end
if #moved > 0 and redis.call('TYPE', KEYS[1])['ok'] == 'hash' then redis.call('HDEL', KEYS[1], 'server') end
return moved",
);

/// R12. KEYS: stream. ARGV: ids. As atomic as a MULTI, and unlike one it also runs on a Redis that is full: only what is
/// acknowledged makes room there.
pub(crate) static ACKNOWLEDGE: Script = Script::new(
    r"
redis.call('XACK', KEYS[1], 'executors', unpack(ARGV))
return redis.call('XDEL', KEYS[1], unpack(ARGV))",
);

/// R14. KEYS: stream. ARGV: consumer, ids. Renews the idle clock of those entries that are still pending under the consumer.
pub(crate) static RENEW: Script = Script::new(
    r"
local mine = {}
for a = 2, #ARGV do
  local p = redis.call('XPENDING', KEYS[1], 'executors', ARGV[a], ARGV[a], 1)
  if p[1] and p[1][2] == ARGV[1] then mine[#mine + 1] = ARGV[a] end
end
if #mine == 0 then return 0 end
mine[#mine + 1] = 'JUSTID'
redis.call('XCLAIM', KEYS[1], 'executors', ARGV[1], 0, unpack(mine))
return #mine - 1",
);

/// R19. KEYS: streams. ARGV: pairs of (index of the stream, id). Answers the positions (from 1) of those not held.
pub(crate) static MISSING: Script = Script::new(
    r"
local missing = {}
for a = 1, #ARGV, 2 do
  if #redis.call('XRANGE', KEYS[tonumber(ARGV[a])], ARGV[a + 1], ARGV[a + 1]) == 0 then missing[#missing + 1] = (a + 1) / 2 end
end
return missing",
);

/// KEYS: stream. ARGV: consumer. Forgets a consumer that holds nothing any more.
pub(crate) static FORGET: Script = Script::new(
    r"
if #redis.call('XPENDING', KEYS[1], 'executors', '-', '+', 1, ARGV[1]) > 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'executors', ARGV[1])
return 1",
);
