package main

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheConsoleInABrowser(t *testing.T) {
	t.Parallel()
	base, stop := serve(t, "-db", filepath.Join(t.TempDir(), "tokens.db"))
	defer stop()
	visit := func(c *http.Client, form url.Values, path string) (int, string, string) {
		method := "GET"
		if form != nil {
			method = "POST"
		}
		req, err := http.NewRequest(method, base+path, strings.NewReader(form.Encode()))
		require.NoError(t, err)
		req.Header.Set("Accept", "text/html")
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		res, err := c.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, res.Request.URL.RequestURI(), string(body)
	}
	signedIn := func(user, password string) *http.Client {
		jar, err := cookiejar.New(nil)
		require.NoError(t, err)
		c := &http.Client{Jar: jar}
		_, at, _ := visit(c, nil, "/console/keys")
		require.Equal(t, "/signin?next=%2Fconsole%2Fkeys", at)
		status, _, _ := visit(c, url.Values{"user": {user}, "password": {"guess"}}, "/signin")
		require.Equal(t, 403, status)
		status, at, _ = visit(c, url.Values{"user": {user}, "password": {password}, "next": {"/console/keys"}}, "/signin")
		require.Equal(t, 200, status)
		require.Equal(t, "/console/keys", at)
		return c
	}

	status, _, body := visit(http.DefaultClient, nil, "/")
	require.Equal(t, 200, status)
	require.Contains(t, body, "alice")

	alice := signedIn("alice", "wonderland")
	_, _, body = visit(alice, nil, "/console/keys/new")
	once := regexp.MustCompile(`name="once" value="(\w+)"`).FindStringSubmatch(body)
	require.NotNil(t, once)
	status, _, body = visit(alice, url.Values{"once": {once[1]}, "name": {"ci"}, "scope": {"orders:read"}, "expires": {"720h0m0s"}}, "/console/keys")
	require.Equal(t, 200, status)
	key := regexp.MustCompile(`<code>(at_ak_\w+)</code>`).FindStringSubmatch(body)
	require.NotNil(t, key, body)
	require.Equal(t, 200, call(t, "GET", base+"/orders", key[1], "", nil), "the key is good where the API is")
	status, _, _ = visit(alice, nil, "/console/admin")
	require.Equal(t, 403, status, "alice is no operator")

	olga := signedIn("olga", "switchboard")
	for _, path := range []string{"/console/admin", "/console/admin/subjects/alice", "/console/admin/clients/cli", "/console/admin/signing-keys"} {
		status, _, _ = visit(olga, nil, path)
		require.Equal(t, 200, status, path)
	}
	status, _, _ = visit(olga, url.Values{"what": {"all"}, "reason": {"test"}, "confirm": {"alice"}}, "/console/admin/subjects/alice/revoke")
	require.Equal(t, 200, status)
	require.Equal(t, 401, call(t, "GET", base+"/orders", key[1], "", nil))
	_, at, _ := visit(alice, nil, "/console/keys")
	require.Equal(t, "/signin?next=%2Fconsole%2Fkeys", at, "her session has ended too")
	_, at, _ = visit(olga, url.Values{}, "/signout")
	require.Equal(t, "/", at)
	_, at, _ = visit(olga, nil, "/console/admin")
	require.Equal(t, "/signin?next=%2Fconsole%2Fadmin", at)
}
