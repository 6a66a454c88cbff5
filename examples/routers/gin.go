package main

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
)

func withGin(auth *httpauth.Auth) server {
	r := gin.New()
	r.GET("/healthz", func(c *gin.Context) { c.String(http.StatusOK, "ok") })
	guarded := r.Group("/", ginGuard(auth.Require("orders:read")))
	guarded.GET("/orders", func(c *gin.Context) {
		c.String(http.StatusOK, "orders of %s", apitoken.FromContext(c.Request.Context()).Subject())
	})
	return overHTTP(r)
}

// ginGuard makes a gin middleware out of a guard. A request that the guard answers itself goes no further: gin would
// run the remaining handlers if nobody aborted.
func ginGuard(guard func(http.Handler) http.Handler) gin.HandlerFunc {
	return func(c *gin.Context) {
		passed := false
		next := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			passed = true
			c.Request = r // with the token in its context
			c.Next()
		})
		guard(next).ServeHTTP(c.Writer, c.Request)
		if !passed {
			c.Abort()
		}
	}
}
