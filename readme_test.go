package apitoken_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var goBlock = regexp.MustCompile("(?s)```go\n(.*?)```")

// TestReadmeFitsOnAFewScreens: the README says what this is and where to go; everything else is in docs.
func TestReadmeFitsOnAFewScreens(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("README.md")
	require.NoError(t, err)
	require.LessOrEqual(t, len(doc), 8192)
}

var link = regexp.MustCompile(`\]\(([^)]+)\)`)

// TestDocumentsLink opens each file and each heading to which a document links.
func TestDocumentsLink(t *testing.T) {
	t.Parallel()
	for _, name := range documents(t) {
		doc, err := os.ReadFile(name)
		require.NoError(t, err)
		for _, m := range link.FindAllStringSubmatch(string(doc), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			path, heading, _ := strings.Cut(m[1], "#")
			to := name
			if path != "" {
				to = filepath.Join(filepath.Dir(name), filepath.FromSlash(path))
			}
			target, err := os.ReadFile(to)
			if !assert.NoError(t, err, "%s links to %s", name, m[1]) || heading == "" {
				continue
			}
			assert.Contains(t, headings(string(target)), heading, "%s links to %s", name, m[1])
		}
	}
}

// headings are the anchors that Markdown's readers make of a document's headings.
func headings(doc string) []string {
	var list []string
	for line := range strings.Lines(doc) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			title = regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), "")
			list = append(list, strings.ReplaceAll(title, " ", "-"))
		}
	}
	return list
}

var fileName = regexp.MustCompile("`([a-z0-9_/]+\\.go)`")

// TestArchitectureIsOfThisTree: the document names each internal package, and no file that is not there.
func TestArchitectureIsOfThisTree(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("docs/architecture.md")
	require.NoError(t, err)
	dirs, err := os.ReadDir("internal")
	require.NoError(t, err)
	for _, d := range dirs {
		assert.Regexp(t, `\b`+d.Name()+`\b`, string(doc), "an internal package that docs/architecture.md does not name")
	}
	files := fileName.FindAllStringSubmatch(string(doc), -1)
	require.NotEmpty(t, files)
	for _, m := range files {
		assert.FileExists(t, filepath.FromSlash(m[1]))
	}
}

// documents are all Markdown files that readers of the repository are sent to.
func documents(t *testing.T) []string {
	t.Helper()
	docs, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	require.NotEmpty(t, docs)
	root, err := filepath.Glob("*.md")
	require.NoError(t, err)
	return append(root, docs...)
}

// TestDocumentsCompile builds each Go block of the documents: a whole program as it stands, a piece with the imports that
// its names need.
func TestDocumentsCompile(t *testing.T) {
	t.Parallel()
	const module = "github.com/apitoken-go/apitoken"
	imports := map[string]string{"apitoken": module, "httpauth": module + "/httpauth", "remote": module + "/remote", "memstore": module + "/store/memstore", "boltstore": module + "/store/boltstore",
		"storetest": module + "/store/storetest", "store": module + "/store", "ledger": module + "/ledger", "oauthhttp": module + "/oauthhttp", "misuse": module + "/misuse", "report": module + "/report",
		"pgstore": module + "/store/pgstore", "redisstore": module + "/store/redisstore", "etcdstore": module + "/store/etcdstore",
		"pgxpool": "github.com/jackc/pgx/v5/pgxpool", "redis": "github.com/redis/go-redis/v9", "clientv3": "go.etcd.io/etcd/client/v3",
		"profile": module + "/profile", "keyhash": module + "/keyhash", "sha256": "crypto/sha256", "hex": "encoding/hex", "mcpauth": module + "/mcpauth", "grpcauth": module + "/grpcauth", "grpc": "google.golang.org/grpc", "connectauth": module + "/connectauth", "connect": "connectrpc.com/connect", "forwardauth": module + "/forwardauth", "netip": "net/netip", "mcp": "github.com/modelcontextprotocol/go-sdk/mcp",
		"apitokentest": module + "/apitokentest", "console": module + "/console", "admin": module + "/admin", "json": "encoding/json", "httptest": "net/http/httptest", "slog": "log/slog",
		"dpopclient": module + "/dpopclient", "move": module + "/store/move", "event": module + "/event", "export": module + "/export", "feed": module + "/feed", "crypto": "crypto", "url": "net/url",
		"http": "net/http", "jwt": "github.com/golang-jwt/jwt/v5", "context": "context", "time": "time", "testing": "testing", "fmt": "fmt", "log": "log", "errors": "errors", "os": "os", "io": "io"}

	// Inside the module, so that its packages resolve; a name that go tooling passes over.
	dir, err := os.MkdirTemp(".", "_documents")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })

	var packages []string
	for _, doc := range documents(t) {
		text, err := os.ReadFile(doc)
		require.NoError(t, err)
		for i, b := range goBlock.FindAllStringSubmatch(string(text), -1) {
			code := b[1]
			// The compiler's messages name the document by it, and the block by its number from 1.
			name := fmt.Sprintf("%s_%d", strings.NewReplacer("-", "_", ".md", "").Replace(strings.ToLower(filepath.Base(doc))), i+1)
			if !strings.HasPrefix(code, "package ") {
				var head strings.Builder
				head.WriteString("package " + name + "\n\nimport (\n")
				for word, path := range imports {
					if regexp.MustCompile(`\b` + word + `\.[A-Z]`).MatchString(code) {
						fmt.Fprintf(&head, "\t%s %q\n", word, path)
					}
				}
				code = head.String() + ")\n\n" + code
				if strings.Contains(code, "HandlerFunc(list)") { // the host's own
					code += "\nfunc list(http.ResponseWriter, *http.Request) {}\n"
				}
			}
			sub := filepath.Join(dir, name)
			require.NoError(t, os.Mkdir(sub, 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(sub, "block.go"), []byte(code), 0o644))
			packages = append(packages, "./"+filepath.ToSlash(sub))
		}
	}
	require.GreaterOrEqual(t, len(packages), 20)
	out, err := exec.Command("go", append([]string{"vet"}, packages...)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}
