package main

import (
	"bufio"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/freeport"
)

// TestTheConformanceSuite: the authorization server's scenarios of @modelcontextprotocol/conformance pass without a warning. Its
// scenarios for servers have none on authorization, and those named auth/ try clients.
func TestTheConformanceSuite(t *testing.T) {
	t.Parallel()
	dir := programs(t)
	base, svc, _ := start(t)
	c, _, err := svc.Clients.Create(t.Context(), apitoken.Client{Public: true, GrantTypes: []string{"authorization_code", "refresh_token"},
		RedirectURIs: []string{"http://127.0.0.1/callback"}, Scopes: apitoken.Scopes{read, write}})
	require.NoError(t, err)
	port, err := freeport.New() // the suite listens there for the answer
	require.NoError(t, err)

	run := exec.CommandContext(t.Context(), "node", "--import", "./node20.mjs", "node_modules/@modelcontextprotocol/conformance/dist/index.js",
		"authorization", "--url", base, "--client-id", c.ID, "--resource", base+"/mcp", "--port", strconv.Itoa(port))
	run.Dir, run.WaitDelay = dir, time.Second
	out, err := run.StdoutPipe()
	require.NoError(t, err)
	run.Stderr = run.Stdout
	require.NoError(t, run.Start())
	var said strings.Builder
	page, listens := "", false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		switch {
		case strings.HasPrefix(lines.Text(), base+"/authorize?"):
			page = lines.Text()
		case strings.HasPrefix(lines.Text(), "Callback server started"):
			listens = true
		}
		if page == "" || !listens {
			continue
		}
		to, err := visit(page)
		require.NoError(t, err, said.String())
		r, err := http.Get(to.String())
		require.NoError(t, err, said.String())
		r.Body.Close()
		page = ""
	}
	require.NoError(t, run.Wait(), said.String())
	require.Contains(t, said.String(), "Total: 3 passed, 0 failed")
	for _, bad := range []string{"warning", "skipped"} {
		require.NotContains(t, strings.ToLower(said.String()), bad)
	}
}
