-- What REST needs beyond Envoy's transcoding: masks from bodies, entity tags, statuses, one form of
-- errors. The configuration prepends FIELDS, the names that each body may have; it is a Lua 5.1 script.

local REST = "x-taskservice-rest"
local STATE = "taskservice.rest"
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

-- Respond with a google.rpc.Status, as the service does.
local function refuse(handle, status, message, field)
  local code, reason = NAMES[status][1], NAMES[status][2]
  local details = string.format(
    '{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"%s","domain":"taskservice","metadata":{}}',
    reason)
  if field then
    details = details .. string.format(
      ',{"@type":"type.googleapis.com/google.rpc.BadRequest","field_violations":[' ..
      '{"field":%s,"description":%s,"reason":"UNKNOWN_FIELD"}]}', quoted(field), quoted(message))
    message = field .. ": " .. message
  end
  local body = string.format('{"code":%d,"message":%s,"details":[%s]}', code, quoted(message), details)
  handle:streamInfo():dynamicMetadata():set(STATE, "refused", true)  -- Its body is complete.
  handle:respond({[":status"] = tostring(status), ["content-type"] = "application/json"}, body)
end

local ESCAPES = {b = "\b", f = "\f", n = "\n", r = "\r", t = "\t"}

-- Read the JSON string that begins at `at`; return it and the position behind it, or nil.
local function read_string(text, at)
  local parts, from = {}, at + 1
  while true do
    local stop = text:find('["\\]', from)
    if not stop then return nil end
    parts[#parts + 1] = text:sub(from, stop - 1)
    if text:sub(stop, stop) == '"' then return table.concat(parts), stop + 1 end
    local letter = text:sub(stop + 1, stop + 1)
    local hex = letter == "u" and text:match("^%x%x%x%x", stop + 2)
    if hex and tonumber(hex, 16) < 128 then
      parts[#parts + 1] = string.char(tonumber(hex, 16))
    elseif hex then
      parts[#parts + 1] = "\\u" .. hex
    else
      parts[#parts + 1] = ESCAPES[letter] or letter
    end
    from = stop + (hex and 6 or 2)
  end
end

-- Return the first unknown field of the body, by its path, and the keys of its top level. Both are
-- nil if the body is no JSON object: the transcoder describes what is wrong.
local function examine(text, known)
  local objects, depth, keys, at = {}, 0, nil, 1
  local pending = known  -- The fields of the next object: of the value that follows.
  local path, expects_key = "", false
  while true do
    at = text:find("[^%s,]", at)
    if not at then return nil, depth == 0 and keys or nil end
    local c = text:sub(at, at)
    if c == "{" or c == "[" then
      if depth == 0 and c == "[" then return nil, nil end
      depth = depth + 1
      objects[depth] = {fields = pending, is_object = c == "{", path = path}
      keys = keys or {}
      expects_key = c == "{"
      at = at + 1
    elseif c == "}" or c == "]" then
      if depth == 0 then return nil, nil end
      depth = depth - 1
      local outer = objects[depth]
      if outer then
        pending, path = outer.fields, outer.path
        expects_key = outer.is_object
      end
      at = at + 1
    elseif c == '"' then
      local name, behind = read_string(text, at)
      if not name then return nil, nil end
      at = behind
      local object = objects[depth]
      if object and object.is_object and expects_key then
        path = object.path == "" and name or (object.path .. "." .. name)
        if type(object.fields) == "table" then
          local field = object.fields[name]
          if field == nil then return path, nil end
          pending = field
          if depth == 1 then keys[#keys + 1] = field.name or name end
        else
          pending = nil
        end
        at = (text:match("^%s*:()", at)) or at
        expects_key = false
      else
        expects_key = object and object.is_object or false
      end
    else
      if depth == 0 then return nil, nil end
      at = text:find("[%s,%]}]", at) or #text + 1
      expects_key = objects[depth] and objects[depth].is_object or false
    end
    if depth == 0 and text:find("^%s*$", at) then return nil, keys end
  end
end

local function query_has(path, name)
  return ("&" .. (path:match("%?(.*)$") or "")):match("&" .. name .. "=([^&]*)")
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
local function apply_if_match(handle, headers, method, path)
  local given = headers:get("if-match")
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
  local given = query_has(headers:get(":path"), "update_mask")
  if method == "PUT" then
    if given and given ~= "*" and given ~= "%2A" and given ~= "%2a" then
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
  headers:remove(REST)
  local kind = headers:get("content-type") or ""
  if kind:sub(1, 16) == "application/grpc" then return end
  local method, path = headers:get(":method"), headers:get(":path"):match("^[^?]*")
  local state = handle:streamInfo():dynamicMetadata()
  state:set(STATE, "method", method)
  state:set(STATE, "route", path)
  state:set(STATE, "is_watch", path == "/tasks:watch")
  state:set(STATE, "if_match", headers:get("if-match") and "yes" or "no")
  state:set(STATE, "if_none_match", headers:get("if-none-match") or "")
  headers:add(REST, "1")
  if method == "HEAD" then headers:replace(":method", "GET") end
  if not apply_if_match(handle, headers, method, path) then return end
  if method ~= "POST" and method ~= "PUT" and method ~= "PATCH" then return end
  local media = kind:lower():match("^%s*([^;%s]+)") or ""
  if media ~= "application/json" and not (method == "PATCH" and media == "application/merge-patch+json") then
    refuse(handle, 415, "the body must be application/json")
    return
  end
  local body = handle:body()
  local text = body and body:getBytes(0, body:length()) or ""
  local known, prefix = body_fields(method, path)
  if not known then return end
  local unknown, keys = examine(text, known)
  if unknown then
    refuse(handle, 400, "there is no such field", prefix .. unknown)
  elseif keys and method ~= "POST" then
    apply_mask(handle, method, keys)
  end
end

local HIDDEN = {
  "grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-accept-encoding",
  "grpc-encoding", "grpc-retry-pushback-ms", "task-id", "trailer",
}

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
local function refine(handle, status, state)
  if status == "401" then handle:headers():replace("www-authenticate", "Bearer") end
  if status ~= "409" and status ~= "429" then return end
  local body = handle:body(true)
  local reason = body:getBytes(0, math.min(body:length(), 4096)):match('"reason":"([A-Z_]+)"')
  local headers = handle:headers()
  if reason == "REQUEST_TOO_LARGE" then headers:replace(":status", "413") end
  if reason == "ETAG_MISMATCH" and state.if_match == "yes" then headers:replace(":status", "412") end
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
  local state = handle:streamInfo():dynamicMetadata():get(STATE)
  local headers = handle:headers()
  if not state or headers:get("x-static") then
    headers:remove("x-static")
    return
  end
  local status, id, etag = headers:get(":status"), headers:get("task-id"), headers:get("etag")
  local pushback = tonumber(headers:get("grpc-retry-pushback-ms") or "")
  for _, name in ipairs(HIDDEN) do headers:remove(name) end
  headers:replace("x-content-type-options", "nosniff")
  headers:replace("cache-control", "no-cache")
  if pushback and pushback >= 0 then
    headers:replace("retry-after", tostring(math.max(1, math.ceil(pushback / 1000))))
  end
  if status ~= "200" then
    refine(handle, status, state)
  elseif id then
    complete(handle, headers, state, id, etag)
  elseif state.is_watch then
    local is_sse = (headers:get("content-type") or ""):find("event%-stream")
    headers:replace("content-type", is_sse and "text/event-stream" or "application/x-ndjson")
  elseif state.route == "/health" then
    replace_body(handle, '{"status":"SERVING"}'):replace("content-type", "application/json")
  end
  if state.method == "HEAD" then handle:body(true):setBytes("") end
end
