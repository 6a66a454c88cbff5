package forwardauth_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/internal/freeport"
)

// nginxConf is docs/proxies.md's configuration of nginx, on a port and in a directory of the test's.
const nginxConf = `
daemon off; master_process off; pid DIR/pid; error_log DIR/error.log;
events {}
http {
  access_log off; client_body_temp_path DIR/a; proxy_temp_path DIR/b; fastcgi_temp_path DIR/c; uwsgi_temp_path DIR/d; scgi_temp_path DIR/e;
  server {
    listen 127.0.0.1:PORT;
    location / {
      auth_request /_auth;
      auth_request_set $subject $upstream_http_x_auth_subject;
      auth_request_set $challenge $upstream_http_www_authenticate;
      add_header WWW-Authenticate $challenge always;
      proxy_set_header X-Auth-Subject $subject;
      proxy_pass http://API;
    }
    location = /_auth {
      internal;
      proxy_pass AUTH/auth;
      proxy_pass_request_body off;
      proxy_set_header Content-Length "";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Method "";
      proxy_set_header X-Forwarded-Uri "";
      proxy_set_header X-Original-Method $request_method;
      proxy_set_header X-Original-Uri $request_uri;
    }
  }
}
`

// haproxyConf and haproxyLua are docs/proxies.md's configuration of HAProxy, on a port and in a directory of the test's.
const haproxyConf = `
global
  lua-load DIR/auth.lua
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend api
  bind 127.0.0.1:PORT
  http-request lua.apitoken
  default_backend orders
backend orders
  server orders API
`

const haproxyLua = `
local service = "AUTH/auth"
local own = { host = true, connection = true, ["content-length"] = true, ["transfer-encoding"] = true, expect = true, upgrade = true,
  ["x-forwarded-for"] = true, ["x-forwarded-method"] = true, ["x-forwarded-uri"] = true }

core.register_action("apitoken", { "http-req" }, function(txn)
  local ask = {}
  for name, values in pairs(txn.http:req_get_headers()) do
    if not own[name] then
      ask[name] = {}
      for i = 0, #values do table.insert(ask[name], values[i]) end
    end
  end
  ask["x-forwarded-for"] = { txn.sf:src() }
  ask["x-original-method"] = { txn.sf:method() }
  ask["x-original-uri"] = { txn.sf:pathq() }

  local answer = core.httpclient():get{ url = service, headers = ask, timeout = 5000 }
  if answer and answer.status == 200 then
    txn.http:req_set_header("x-auth-subject", answer.headers["x-auth-subject"][0])
    return
  end
  local reply = txn:reply()
  reply:set_status(503)
  if answer and (answer.status == 401 or answer.status == 403) then
    reply:set_status(answer.status)
    local challenges = answer.headers["www-authenticate"] or {}
    for i = 0, #challenges do
      if challenges[i] then reply:add_header("www-authenticate", challenges[i]) end
    end
  end
  txn:done(reply)
end)
`

// A real nginx lets through whom the handler lets through, and tells the service behind who it is.
func TestNginx(t *testing.T) {
	t.Parallel()
	tryProxy(t, "nginx", "nginx-light", map[string]string{"nginx.conf": nginxConf}, http.StatusInternalServerError, func(dir string) []string {
		return []string{"-c", filepath.Join(dir, "nginx.conf"), "-p", dir, "-e", filepath.Join(dir, "error.log")}
	})
}

// A real HAProxy does the same.
func TestHAProxy(t *testing.T) {
	t.Parallel()
	tryProxy(t, "haproxy", "haproxy", map[string]string{"haproxy.cfg": haproxyConf, "auth.lua": haproxyLua}, http.StatusServiceUnavailable, func(dir string) []string {
		return []string{"-db", "-f", filepath.Join(dir, "haproxy.cfg")}
	})
}

// tryProxy runs a program of a Debian package with files in its directory, and calls a service through it. down is what callers
// get when nobody can say who they are.
func tryProxy(t *testing.T, name, debian string, files map[string]string, down int, args func(dir string) []string) {
	program, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("APITOKEN_TEST_REQUIRE") != "" {
			t.Fatal(name + " is not installed")
		}
		t.Skip(name + " is not installed; on Debian: apt-get install " + debian)
	}
	svc := apitokentest.New(t)
	mux := http.NewServeMux()
	mux.Handle("/auth", handler(svc))
	check := httptest.NewServer(mux)
	t.Cleanup(check.Close)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%q", r.Header["X-Auth-Subject"]) }))
	t.Cleanup(api.Close)

	port, err := freeport.New()
	require.NoError(t, err)
	dir := t.TempDir()
	fill := strings.NewReplacer("DIR", dir, "PORT", fmt.Sprint(port), "API", strings.TrimPrefix(api.URL, "http://"), "AUTH", check.URL)
	for file, text := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(fill.Replace(text)), 0o600))
	}
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, args(dir)...)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		stop()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	base := fmt.Sprintf("http://127.0.0.1:%d", port)
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
		}
		return err == nil
	}, 20*time.Second, 10*time.Millisecond, name+" did not start")

	get := func(path string, header http.Header) (int, string, string) {
		t.Helper()
		r, err := http.NewRequest("GET", base+path, nil)
		require.NoError(t, err)
		for k, v := range header {
			r.Header[k] = v
		}
		a, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		defer a.Body.Close()
		text, err := io.ReadAll(a.Body)
		require.NoError(t, err)
		return a.StatusCode, string(text), strings.Join(a.Header.Values("WWW-Authenticate"), ", ")
	}
	good := http.Header{"Authorization": {"Bearer " + svc.Mint("Zoë", "orders:read")}}
	status, text, _ := get("/orders?x=1", good)
	require.Equal(t, 200, status, text)
	require.Equal(t, `["Zo%C3%AB"]`, text)

	// What the caller says of itself is overwritten, and what it says to the handler is not heard.
	forged := good.Clone()
	forged["X-Auth-Subject"], forged["X-Forwarded-Uri"], forged["X-Original-Uri"] = []string{"root"}, []string{"/other"}, []string{"/other"}
	_, text, _ = get("/orders", forged)
	require.Equal(t, `["Zo%C3%AB"]`, text)

	status, _, challenge := get("/orders", nil)
	require.Equal(t, 401, status)
	require.Contains(t, challenge, `Bearer scope="orders:read"`)
	status, _, challenge = get("/orders", http.Header{"Authorization": {"Bearer " + svc.Mint("bob")}})
	require.Equal(t, 403, status)
	require.Contains(t, challenge, "insufficient_scope")
	status, _, _ = get("/orders?access_token="+url.QueryEscape(svc.Mint("bob", "orders:read")), good)
	require.Equal(t, 401, status, "one token in the header and one in the query")
	check.Close()
	status, _, _ = get("/orders", good)
	require.Equal(t, down, status, "who cannot be checked does not come in")
}
