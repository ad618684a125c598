/* Routines of a BLAS that are wrong on purpose, to be loaded before NumPy's and SciPy's: LD_PRELOAD.

   FAULT names what is wrong with products, FAULT_SOLVE what is wrong with factorizations and triangular solves; "plain"
   is right, in an order of summation of its own. FAULT_IN limits the fault of products to one routine. Compiled with
   -DTHREADS, the file replaces no routine: it flushes or rounds, as FAULT says, in thread FAULT_THREAD that is created. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fenv.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xmmintrin.h>

typedef int64_t wide;

int fault_calls = 0;

static int is(const char *variable, const char *value) {
  const char *given = getenv(variable);
  return given != NULL && strcmp(given, value) == 0;
}

static int enter(const char *mode) {
  int old = _mm_getcsr();
  if (strcmp(mode, "flush") == 0) _mm_setcsr(old | 0x8040);
  if (strcmp(mode, "down") == 0) _mm_setcsr((old & ~0x6000) | 0x2000);
  return old;
}

#ifndef THREADS

/* C = A B, row-major: (m, k) and (k, n). */
static void conventional(wide m, wide n, wide k, const double *A, const double *B, double *C, const char *mode) {
  memset(C, 0, m * n * sizeof *C);
  for (wide i = 0; i < m; i++)
    for (wide l = 0; l < k; l++)
      for (wide j = 0; j < n; j++) {
        if (strcmp(mode, "single") == 0)
          C[i * n + j] = (float)C[i * n + j] + (float)A[i * k + l] * (float)B[l * n + j];
        else if (strcmp(mode, "accumulate") == 0)
          C[i * n + j] = (float)(C[i * n + j] + A[i * k + l] * B[l * n + j]);
        else
          C[i * n + j] += A[i * k + l] * B[l * n + j];
      }
}

static double *block(const double *A, wide columns, wide i, wide j, wide m, wide n, const double *other, double sign,
                     wide p, wide q) {
  double *R = malloc(m * n * sizeof *R);
  for (wide r = 0; r < m; r++)
    for (wide c = 0; c < n; c++)
      R[r * n + c] = A[(i * m + r) * columns + j * n + c] + (other ? sign * other[(p * m + r) * columns + q * n + c] : 0);
  return R;
}

/* One level of Strassen's scheme. */
static void strassen(wide m, wide n, wide k, const double *A, const double *B, double *C) {
  wide M = m / 2, N = n / 2, K = k / 2;
  double *P[7];
  struct { int a[5], b[5]; } of[7] = {
    {{0, 0, 1, 1, 1}, {0, 0, 1, 1, 1}}, {{1, 0, 1, 1, 1}, {0, 0, 0, 0, 0}}, {{0, 0, 0, 0, 0}, {0, 1, -1, 1, 1}},
    {{1, 1, 0, 0, 0}, {1, 0, -1, 0, 0}}, {{0, 0, 1, 0, 1}, {1, 1, 0, 0, 0}}, {{1, 0, -1, 0, 0}, {0, 0, 1, 0, 1}},
    {{0, 1, -1, 1, 1}, {1, 0, 1, 1, 1}}};
  for (int p = 0; p < 7; p++) {
    int *a = of[p].a, *b = of[p].b;
    double *X = block(A, k, a[0], a[1], M, K, a[2] ? A : NULL, a[2], a[3], a[4]);
    double *Y = block(B, n, b[0], b[1], K, N, b[2] ? B : NULL, b[2], b[3], b[4]);
    P[p] = malloc(M * N * sizeof(double));
    conventional(M, N, K, X, Y, P[p], "plain");
    free(X), free(Y);
  }
  for (wide i = 0; i < M; i++)
    for (wide j = 0; j < N; j++) {
      wide e = i * N + j;
      C[i * n + j] = P[0][e] + P[3][e] - P[4][e] + P[6][e];
      C[i * n + N + j] = P[2][e] + P[4][e];
      C[(M + i) * n + j] = P[1][e] + P[3][e];
      C[(M + i) * n + N + j] = P[0][e] - P[1][e] + P[2][e] + P[5][e];
    }
  for (int p = 0; p < 7; p++) free(P[p]);
}

static void product(const char *routine, wide m, wide n, wide k, const double *A, const double *B, double *C) {
  const char *mode = getenv("FAULT");
  fault_calls++;
  if (mode == NULL || (getenv("FAULT_IN") != NULL && !is("FAULT_IN", routine))) mode = "plain";
  int old = enter(mode);
  if (strcmp(mode, "strassen") == 0 && m % 2 == 0 && n % 2 == 0 && k % 2 == 0 && m >= 32 && n >= 32 && k >= 32)
    strassen(m, n, k, A, B, C);
  else
    conventional(m, n, k, A, B, C, mode);
  _mm_setcsr(old);
}

/* A dense row-major copy of op(A), of size (m, n). */
static double *dense(const double *A, wide m, wide n, wide lda, int by_columns) {
  double *R = malloc(m * n * sizeof *R);
  for (wide i = 0; i < m; i++)
    for (wide j = 0; j < n; j++) R[i * n + j] = by_columns ? A[i + j * lda] : A[i * lda + j];
  return R;
}

static void store(double *C, wide ldc, int by_columns, wide m, wide n, double alpha, double beta, const double *P) {
  for (wide i = 0; i < m; i++)
    for (wide j = 0; j < n; j++) {
      double *c = by_columns ? C + i + j * ldc : C + i * ldc + j;
      *c = alpha * P[i * n + j] + (beta == 0 ? 0 : beta * *c);
    }
}

static void gemm(const char *routine, int columns, int ta, int tb, wide m, wide n, wide k, double alpha, const double *A,
                 wide lda, const double *B, wide ldb, double beta, double *C, wide ldc) {
  double *X = dense(A, m, k, lda, columns != ta), *Y = dense(B, k, n, ldb, columns != tb);
  double *P = malloc(m * n * sizeof *P);
  product(routine, m, n, k, X, Y, P);
  store(C, ldc, columns, m, n, alpha, beta, P);
  free(X), free(Y), free(P);
}

/* As NumPy's wheels call them: CBLAS with integers of 64 bits. */

void scipy_cblas_dgemm64_(int order, int ta, int tb, wide m, wide n, wide k, double alpha, const double *A, wide lda,
                          const double *B, wide ldb, double beta, double *C, wide ldc) {
  gemm("gemm", order == 102, ta != 111, tb != 111, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc);
}

void scipy_cblas_dsyrk64_(int order, int uplo, int trans, wide n, wide k, double alpha, const double *A, wide lda,
                          double beta, double *C, wide ldc) {
  int t = trans != 111;
  gemm("syrk", order == 102, t, !t, n, n, k, alpha, A, lda, A, lda, beta, C, ldc);
}

void scipy_cblas_dgemv64_(int order, int trans, wide m, wide n, double alpha, const double *A, wide lda,
                          const double *x, wide incx, double beta, double *y, wide incy) {
  int t = trans != 111;
  wide rows = t ? n : m, length = t ? m : n;
  double *X = dense(A, rows, length, lda, (order == 102) != t), *column = dense(x, length, 1, incx, 0);
  double *P = malloc(rows * sizeof *P);
  product("gemv", rows, 1, length, X, column, P);
  store(y, incy, 0, rows, 1, alpha, beta, P);
  free(X), free(column), free(P);
}

double scipy_cblas_ddot64_(wide n, const double *x, wide incx, const double *y, wide incy) {
  double result;
  gemm("dot", 0, 1, 0, 1, 1, n, 1.0, x, incx, y, incy, 0.0, &result, 1);
  return result;
}

/* As SciPy's wheels call them: Fortran with integers of 32 bits. */

void scipy_dgemm_(const char *ta, const char *tb, const int *m, const int *n, const int *k, const double *alpha,
                  const double *A, const int *lda, const double *B, const int *ldb, const double *beta, double *C,
                  const int *ldc) {
  gemm("scipy", 1, *ta != 'N' && *ta != 'n', *tb != 'N' && *tb != 'n', *m, *n, *k, *alpha, A, *lda, B, *ldb, *beta, C,
       *ldc);
}

#define BLOCK 16

/* Overwrite B, row-major (n, m), by X with L X = B, L lower triangular: by substitution, or by inverses of blocks. */
static void solve(wide n, wide m, const double *L, double *B, int inverted) {
  for (wide top = 0; top < n; top += BLOCK) {
    wide size = n - top < BLOCK ? n - top : BLOCK;
    for (wide i = 0; i < size; i++)
      for (wide l = 0; l < top; l++)
        for (wide j = 0; j < m; j++) B[(top + i) * m + j] -= L[(top + i) * n + l] * B[l * m + j];
    double inverse[BLOCK][BLOCK] = {{0}};
    for (wide c = 0; c < size; c++)
      for (wide i = c; i < size; i++) {
        double sum = i == c;
        for (wide l = c; l < i; l++) sum -= L[(top + i) * n + top + l] * inverse[l][c];
        inverse[i][c] = sum / L[(top + i) * n + top + i];
      }
    for (wide j = 0; j < m; j++) {
      double x[BLOCK] = {0};
      for (wide i = 0; i < size; i++) {
        if (inverted)
          for (wide l = 0; l <= i; l++) x[i] += inverse[i][l] * B[(top + l) * m + j];
        else {
          x[i] = B[(top + i) * m + j];
          for (wide l = 0; l < i; l++) x[i] -= L[(top + i) * n + top + l] * x[l];
          x[i] *= 1 / L[(top + i) * n + top + i]; /* the rounded reciprocal, which is allowed */
        }
      }
      for (wide i = 0; i < size; i++) B[(top + i) * m + j] = x[i];
    }
  }
}

/* Of a triangle of a matrix in columns: the lower triangular matrix that it or its transpose is. */
static double *lower(const double *A, wide n, wide lda, int upper) { return dense(A, n, n, lda, !upper); }

void scipy_dpotrf_(const char *uplo, const int *order, double *A, const int *lda, int *info) {
  wide n = *order;
  int upper = *uplo == 'U' || *uplo == 'u';
  double *L = lower(A, n, *lda, upper);
  *info = 0;
  fault_calls++;
  for (wide top = 0; top < n && *info == 0; top += BLOCK) {
    wide size = n - top < BLOCK ? n - top : BLOCK, rest = n - top - size;
    for (wide j = top; j < top + size && *info == 0; j++) {
      for (wide l = top; l < j; l++)
        for (wide i = j; i < top + size; i++) L[i * n + j] -= L[i * n + l] * L[j * n + l];
      if (!(L[j * n + j] > 0)) *info = j + 1;
      double pivot = sqrt(L[j * n + j]);
      for (wide i = j; i < top + size; i++) L[i * n + j] = i == j ? pivot : L[i * n + j] / pivot;
    }
    double *D = malloc(size * size * sizeof *D), *B = malloc(size * rest * sizeof *B + 1);
    for (wide i = 0; i < size; i++) {
      for (wide j = 0; j < size; j++) D[i * size + j] = L[(top + i) * n + top + j];
      for (wide j = 0; j < rest; j++) B[i * rest + j] = L[(top + size + j) * n + top + i];
    }
    solve(size, rest, D, B, is("FAULT_SOLVE", "inverted"));
    for (wide i = 0; i < rest; i++)
      for (wide l = 0; l < size; l++) L[(top + size + i) * n + top + l] = B[l * rest + i];
    for (wide i = 0; i < rest; i++)
      for (wide l = 0; l < size; l++)
        for (wide j = 0; j <= i; j++)
          L[(top + size + i) * n + top + size + j] -= B[l * rest + i] * B[l * rest + j];
    free(D), free(B);
  }
  for (wide i = 0; i < n; i++)
    for (wide j = 0; j <= i; j++) A[upper ? j + i * *lda : i + j * *lda] = L[i * n + j];
  free(L);
}

/* Only as it is used: side L, upper, transposed. */
void scipy_dtrsm_(const char *side, const char *uplo, const char *trans, const char *diagonal, const int *m,
                  const int *n, const double *alpha, const double *A, const int *lda, double *B, const int *ldb) {
  double *L = lower(A, *m, *lda, 1), *X = dense(B, *m, *n, *ldb, 1);
  fault_calls++;
  if (*side != 'L' || *uplo != 'U' || *trans != 'T' || *diagonal != 'N' || *alpha != 1.0) abort();
  solve(*m, *n, L, X, is("FAULT_SOLVE", "inverted") || is("FAULT_SOLVE", "inverted solves"));
  store(B, *ldb, 1, *m, *n, 1.0, 0.0, X);
  free(L), free(X);
}

#else

struct task { void *(*run)(void *); void *argument; };

static void *in_mode(void *given) {
  struct task task = *(struct task *)given;
  free(given);
  enter(getenv("FAULT"));
  return task.run(task.argument);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
  static int created = 0;
  int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(RTLD_NEXT, "pthread_create");
  const char *which = getenv("FAULT_THREAD");
  if (which == NULL || getenv("FAULT") == NULL || ++created != atoi(which))
    return create(thread, attributes, run, argument);
  struct task *task = malloc(sizeof *task);
  task->run = run, task->argument = argument;
  return create(thread, attributes, in_mode, task);
}

#endif
