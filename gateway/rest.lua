-- What REST needs beyond Envoy's transcoding: masks from bodies, entity tags, statuses, one form of
-- errors. The configuration prepends FIELDS, the names that each body may have; it is a Lua 5.1 script.

local REST = "x-taskservice-rest"
local STATE = "taskservice.rest"
local MAX_BODY = 4 * 1024 * 1024  -- Reading a body occupies the gateway: this one for a second at most.
local NAMES = {  -- HTTP status: gRPC code and reason of an error that the gateway itself finds.
  [400] = {3, "INVALID_REQUEST"}, [404] = {5, "NO_SUCH_ROUTE"}, [412] = {10, "ETAG_MISMATCH"},
  [413] = {8, "REQUEST_TOO_LARGE"}, [415] = {3, "MEDIA_TYPE_NOT_SUPPORTED"},
}

local function quoted(text)
  return '"' .. text:gsub('[%c"\\\127-\255]', function(c)
    if c == '"' or c == "\\" then return "\\" .. c end
    if c:byte() > 127 then return c end
    return string.format("\\u%04x", c:byte())
  end) .. '"'
end

local function status_text(status, message, details)
  local code, reason = NAMES[status][1], NAMES[status][2]
  return string.format(
    '{"code":%d,"message":%s,"details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo",' ..
    '"reason":"%s","domain":"taskservice","metadata":{}}%s]}', code, quoted(message), reason, details or "")
end

-- Respond with a google.rpc.Status, as the service does.
local function refuse(handle, status, message, field)
  local details
  if field then
    details = string.format(
      ',{"@type":"type.googleapis.com/google.rpc.BadRequest","field_violations":[' ..
      '{"field":%s,"description":%s,"reason":"UNKNOWN_FIELD"}]}', quoted(field), quoted(message))
    message = field .. ": " .. message
  end
  handle:streamInfo():dynamicMetadata():set(STATE, "refused", true)  -- Its body is complete.
  local headers = {[":status"] = tostring(status), ["content-type"] = "application/json"}
  handle:respond(headers, status_text(status, message, details))
end

-- A strict reader of JSON objects (RFC 8259). The transcoder takes more, such as keys without quotes,
-- which would hide fields from the mask. A reader returns the position behind what it reads; or nil
-- and what is wrong: the path of an unknown field, or the position of a syntax error.
local MAX_DEPTH = 32
local MAX_NAME = 200
local ESCAPES = {b = "\b", f = "\f", n = "\n", r = "\r", t = "\t"}
local UTF8 = {  -- The well-formed sequences of several bytes.
  "[\194-\223][\128-\191]", "\224[\160-\191][\128-\191]", "[\225-\236\238\239][\128-\191][\128-\191]",
  "\237[\128-\159][\128-\191]", "\240[\144-\191][\128-\191][\128-\191]",
  "[\241-\243][\128-\191][\128-\191][\128-\191]", "\244[\128-\143][\128-\191][\128-\191]",
}
local read_value

local function is_utf8(text)
  for _, sequence in ipairs(UTF8) do text = text:gsub(sequence, " ") end
  return not text:find("[\128-\255]")
end

local function skip_space(text, at)
  return text:match("^[ \t\r\n]*()", at)
end

local function read_string(text, at)
  local from = at + 1
  while true do
    local stop = text:find('[%z\1-\31"\\]', from)
    local c = stop and text:sub(stop, stop)
    if c == '"' then return stop + 1 end
    if c ~= "\\" then return nil, at end
    from = stop + 2
  end
end

-- Escaped characters beyond ASCII stay as they are: no field has them.
local function unescape(name)
  return (name:gsub("\\(.)(%x?%x?%x?%x?)", function(letter, hex)
    if letter ~= "u" then return (ESCAPES[letter] or letter) .. hex end
    local code = #hex == 4 and tonumber(hex, 16)
    return code and code < 128 and string.char(code) or nil
  end))
end

-- Read a key and its colon; return its name and the position of its value.
local function read_key(text, at)
  local behind = text:sub(at, at) == '"' and read_string(text, at)
  local value = behind and text:match("^[ \t\r\n]*:[ \t\r\n]*()", behind)
  if not value then return nil, at end
  return unescape(text:sub(at + 1, behind - 2)), value
end

-- Read what follows an item: return the position of the next, or that behind the end and true.
local function read_separator(text, at, close)
  at = skip_space(text, at)
  local c = text:sub(at, at)
  if c == close then return at + 1, true end
  if c ~= "," then return nil, at end
  return skip_space(text, at + 1), false
end

local function read_array(text, at, fields, depth)
  at = skip_space(text, at + 1)
  if text:sub(at, at) == "]" then return at + 1 end
  local index, problem, ended = 0, nil, nil
  repeat
    at, problem = read_value(text, at, fields, depth)
    if not at then
      return nil, type(problem) == "string" and "[" .. index .. "]." .. problem or problem
    end
    at, ended = read_separator(text, at, "]")
    if not at then return nil, ended end
    index = index + 1
  until ended
  return at
end

-- Read an object of known fields, or of any if they are nil. Notes the names of its fields in `keys`.
local function read_object(text, at, fields, depth, keys)
  at = skip_space(text, at + 1)
  if text:sub(at, at) == "}" then return at + 1 end
  repeat
    local name, value = read_key(text, at)
    if not name then return nil, value end
    local field = fields and fields[name]
    if fields and not field then
      return nil, #name <= MAX_NAME and is_utf8(name) and name or at
    end
    if keys then keys[#keys + 1] = field.name end
    local problem, ended
    at, problem = read_value(text, value, field and field.fields, depth)
    if not at then
      if type(problem) == "string" then problem = (name .. "." .. problem):gsub("%.%[", "[") end
      return nil, problem
    end
    at, ended = read_separator(text, at, "}")
    if not at then return nil, ended end
  until ended
  return at
end

function read_value(text, at, fields, depth)
  local c = text:sub(at, at)
  if c == '"' then return read_string(text, at) end
  if (c == "{" or c == "[") and depth == MAX_DEPTH then return nil, at end
  if c == "{" then return read_object(text, at, fields, depth + 1) end
  if c == "[" then return read_array(text, at, fields, depth + 1) end
  local word, behind = text:match("^([%w.+-]+)()", at)
  if word == "true" or word == "false" or word == "null" or tonumber(word or "") then return behind end
  return nil, at
end

-- Read the object that is the whole body; return the names of its fields, or nil and the problem.
local function read_body(text, fields)
  local at, keys = skip_space(text, 1), {}
  if text:sub(at, at) ~= "{" then return nil, at end
  local behind, problem = read_object(text, at, fields, 1, keys)
  if not behind then return nil, problem end
  behind = skip_space(text, behind)
  if behind <= #text then return nil, behind end
  return keys
end

-- Return the mask in the query, by any spelling that the transcoder takes.
local function query_mask(path)
  local query = path:match("%?(.*)$") or ""
  query = "&" .. query:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end)
  for _, name in ipairs({"update_mask", "updateMask"}) do
    local mask = query:match("&" .. name .. "[%w._]*=([^&]*)")
    if mask then return mask end
  end
end

local function add_query(headers, name, value)
  local path = headers:get(":path")
  local escaped = value:gsub("[^%w%-_.,*]", function(c) return string.format("%%%02X", c:byte()) end)
  headers:replace(":path", path .. (path:find("?", 1, true) and "&" or "?") .. name .. "=" .. escaped)
end

-- Return the fields of a body, and the path of the body in the request.
local function body_fields(method, path)
  if method ~= "POST" or path == "/tasks" then return FIELDS.task, "task." end
  return FIELDS[path:match(":(%a+)$") or ""], ""
end

-- Turn If-Match into the etag of the request; return whether the request goes on.
local function apply_if_match(handle, headers, method, path, given)
  if not given or given == "*" or method == "GET" then return true end
  if given:sub(1, 2) == "W/" then
    refuse(handle, 412, "If-Match compares strong entity tags only")
    return false
  end
  local etag = given:match('^"[^"]*"$')  -- An etag of the contract has its quotes (AIP-154).
  if not etag or method == "POST" or path == "/tasks" then
    refuse(handle, 400, "If-Match must be one entity tag, of PUT, PATCH or DELETE")
    return false
  end
  add_query(headers, method == "DELETE" and "etag" or "task.etag", etag)
  return true
end

local function apply_mask(handle, method, keys)
  local headers = handle:headers()
  local given = query_mask(headers:get(":path"))
  if method == "PUT" then
    if given and given ~= "*" then
      refuse(handle, 400, "PUT replaces the task: its update_mask is *")
    elseif not given then
      add_query(headers, "update_mask", "*")
    end
  elseif not given then
    -- With no field at all, the mask is a field that only the server writes: nothing changes.
    add_query(headers, "update_mask", #keys > 0 and table.concat(keys, ",") or "id")
  end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local kind = headers:get("content-type") or ""
  if kind:sub(1, 16) == "application/grpc" then
    headers:remove(REST)
    return
  end
  headers:replace(REST, "1")
  local method, path = headers:get(":method"), headers:get(":path"):match("^[^?]*")
  local if_match = headers:get("if-match")
  -- One text: each entry of the metadata is a conversion to a protobuf value.
  local state = {method, path, if_match and "1" or "0", headers:get("if-none-match") or ""}
  handle:streamInfo():dynamicMetadata():set(STATE, "call", table.concat(state, "\n"))
  if method == "HEAD" then headers:replace(":method", "GET") end
  if not apply_if_match(handle, headers, method, path, if_match) then return end
  if method ~= "POST" and method ~= "PUT" and method ~= "PATCH" then return end
  local media = kind:lower():match("^%s*([^;%s]+)") or ""
  if media ~= "application/json" and not (method == "PATCH" and media == "application/merge-patch+json") then
    refuse(handle, 415, "the body must be application/json")
    return
  end
  local body = handle:body()
  local text = body and body:getBytes(0, body:length()) or ""
  local fields, prefix = body_fields(method, path)
  if #text > MAX_BODY then
    refuse(handle, 413, "the body is larger than " .. MAX_BODY .. " bytes")
    return
  end
  -- An action such as :undelete may have no body.
  if not fields or (text == "" and prefix == "") then return end
  local keys, problem = read_body(text, fields)
  if type(problem) == "string" then
    refuse(handle, 400, "there is no such field", prefix .. problem)
  elseif problem then
    refuse(handle, 400, "the body must be a JSON object; it is none from byte " .. problem .. " on")
  elseif method ~= "POST" then
    apply_mask(handle, method, keys)
  end
end

local HIDDEN = {"grpc-status", "grpc-message", "grpc-accept-encoding", "task-id", "trailer"}
local HIDDEN_OF_ERRORS = {"grpc-status-details-bin", "grpc-retry-pushback-ms"}

local function matches(condition, etag)
  if condition == "*" then return true end
  for tag in condition:gmatch('"([^"]*)"') do
    if '"' .. tag .. '"' == etag then return true end
  end
  return false
end

local function replace_body(handle, text)
  handle:body(true):setBytes(text)
  local headers = handle:headers()  -- Those from before the body are no longer valid.
  headers:replace("content-length", tostring(#text))
  return headers
end

local function empty(handle, status)
  local headers = replace_body(handle, "")
  headers:replace(":status", status)
  headers:remove("content-type")
  headers:remove("content-length")
end

-- Refine the status of an error by its reason, which is that of the first detail.
local function refine(handle, headers, status, state)
  local pushback = tonumber(headers:get("grpc-retry-pushback-ms") or "")
  if pushback and pushback >= 0 then
    headers:replace("retry-after", tostring(math.max(1, math.ceil(pushback / 1000))))
  end
  for _, name in ipairs(HIDDEN_OF_ERRORS) do headers:remove(name) end
  if status == "401" then headers:replace("www-authenticate", "Bearer") end
  if status ~= "409" and status ~= "429" then return end
  local body = handle:body(true)
  local reason = body:getBytes(0, math.min(body:length(), 4096)):match('"reason":"([A-Z_]+)"')
  headers = handle:headers()  -- Those from before the body are no longer valid.
  if reason == "REQUEST_TOO_LARGE" then headers:replace(":status", "413") end
  if reason == "ETAG_MISMATCH" and state.has_if_match == "1" then headers:replace(":status", "412") end
  if status == "429" and not reason then  -- gRPC's own limit of a message gives no reason.
    replace_body(handle, status_text(413, "the request is too large")):replace(":status", "413")
  end
end

-- Complete an answer that is a task: 201 for a new one, 204 for a deleted one, 304 for a known one.
local function complete(handle, headers, state, id, etag)
  if etag == "" or state.method == "DELETE" then headers:remove("etag") end
  if state.method == "POST" and state.route == "/tasks" and etag ~= "" then
    headers:replace(":status", "201")
    headers:replace("location", "/tasks/" .. id)
  elseif state.method == "DELETE" then
    empty(handle, "204")
  elseif state.method == "GET" and state.if_none_match ~= "" and matches(state.if_none_match, etag) then
    empty(handle, "304")
  end
end

function envoy_on_response(handle)
  local entries = handle:streamInfo():dynamicMetadata():get(STATE)
  local headers = handle:headers()
  if not (entries and entries.call) or headers:get("x-static") then
    headers:remove("x-static")
    return
  end
  local state = {}
  state.method, state.route, state.has_if_match, state.if_none_match =
    entries.call:match("^(.-)\n(.-)\n(.-)\n(.*)$")
  local status, id, etag = headers:get(":status"), headers:get("task-id"), headers:get("etag")
  for _, name in ipairs(HIDDEN) do headers:remove(name) end
  headers:replace("x-content-type-options", "nosniff")
  headers:replace("cache-control", "no-cache")
  if status ~= "200" then
    refine(handle, headers, status, state)
  elseif id then
    complete(handle, headers, state, id, etag)
  elseif state.route == "/tasks:watch" then
    local is_sse = (headers:get("content-type") or ""):find("event%-stream")
    headers:replace("content-type", is_sse and "text/event-stream" or "application/x-ndjson")
  elseif state.route == "/health" then
    replace_body(handle, '{"status":"SERVING"}'):replace("content-type", "application/json")
  end
  if state.method == "HEAD" then handle:body(true):setBytes("") end
end
