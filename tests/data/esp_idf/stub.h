/* Stands in for the headers of ESP-IDF and its camera component that tflite/esp32 includes, with
   their signatures (ESP-IDF 5, esp32-camera 2). stub.c has a camera that takes frames from stdin. */
#ifndef ESP_IDF_STUB_H_
#define ESP_IDF_STUB_H_

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef int esp_err_t;
#define ESP_OK 0
#define ESP_FAIL (-1)
const char *esp_err_to_name(esp_err_t error);

#define EXT_RAM_BSS_ATTR __attribute__((section(".ext_ram.bss")))

#define ESP_LOG_STUB(letter, tag, format, ...) \
  fprintf(stderr, letter " %s: " format "\n", tag __VA_OPT__(, ) __VA_ARGS__)
#define ESP_LOGE(tag, format, ...) ESP_LOG_STUB("E", tag, format __VA_OPT__(, ) __VA_ARGS__)
#define ESP_LOGW(tag, format, ...) ESP_LOG_STUB("W", tag, format __VA_OPT__(, ) __VA_ARGS__)
#define ESP_LOGI(tag, format, ...) ESP_LOG_STUB("I", tag, format __VA_OPT__(, ) __VA_ARGS__)

__attribute__((noreturn)) void esp_deep_sleep(uint64_t time_in_us);
__attribute__((noreturn)) void esp_restart(void);

/* FreeRTOS */
typedef uint32_t TickType_t;
typedef struct semaphore *SemaphoreHandle_t;
#define portMAX_DELAY ((TickType_t)0xffffffffUL)
#define pdMS_TO_TICKS(milliseconds) ((TickType_t)((milliseconds) / 10))
void vTaskDelay(TickType_t ticks);
SemaphoreHandle_t xSemaphoreCreateMutex(void);
int xSemaphoreTake(SemaphoreHandle_t semaphore, TickType_t ticks);
int xSemaphoreGive(SemaphoreHandle_t semaphore);

/* esp32-camera */
typedef enum { LEDC_TIMER_0 } ledc_timer_t;
typedef enum { LEDC_CHANNEL_0 } ledc_channel_t;
typedef enum { PIXFORMAT_RGB565, PIXFORMAT_YUV422, PIXFORMAT_YUV420, PIXFORMAT_GRAYSCALE, PIXFORMAT_JPEG } pixformat_t;
typedef enum { FRAMESIZE_96X96, FRAMESIZE_QQVGA, FRAMESIZE_QVGA = 5 } framesize_t;
typedef enum { CAMERA_GRAB_WHEN_EMPTY, CAMERA_GRAB_LATEST } camera_grab_mode_t;
typedef enum { CAMERA_FB_IN_PSRAM, CAMERA_FB_IN_DRAM } camera_fb_location_t;

typedef struct {
  int pin_pwdn, pin_reset, pin_xclk, pin_sccb_sda, pin_sccb_scl;
  int pin_d7, pin_d6, pin_d5, pin_d4, pin_d3, pin_d2, pin_d1, pin_d0;
  int pin_vsync, pin_href, pin_pclk;
  int xclk_freq_hz;
  ledc_timer_t ledc_timer;
  ledc_channel_t ledc_channel;
  pixformat_t pixel_format;
  framesize_t frame_size;
  int jpeg_quality;
  size_t fb_count;
  camera_fb_location_t fb_location;
  camera_grab_mode_t grab_mode;
  int sccb_i2c_port;
} camera_config_t;

typedef struct {
  uint8_t *buf;
  size_t len, width, height;
  pixformat_t format;
} camera_fb_t;

esp_err_t esp_camera_init(const camera_config_t *config);
camera_fb_t *esp_camera_fb_get(void);
void esp_camera_fb_return(camera_fb_t *frame);

/* network and HTTP server */
esp_err_t nvs_flash_init(void);
esp_err_t esp_netif_init(void);
esp_err_t esp_event_loop_create_default(void);
esp_err_t example_connect(void);

typedef void *httpd_handle_t;
typedef struct {
  unsigned task_priority;
} httpd_config_t;
#define HTTPD_DEFAULT_CONFIG() \
  { .task_priority = 5 }
#define HTTPD_RESP_USE_STRLEN (-1)
typedef enum { HTTP_GET = 1 } httpd_method_t;
typedef struct {
  const char *uri;
} httpd_req_t;
typedef struct {
  const char *uri;
  httpd_method_t method;
  esp_err_t (*handler)(httpd_req_t *request);
  void *user_ctx;
} httpd_uri_t;
esp_err_t httpd_start(httpd_handle_t *server, const httpd_config_t *config);
esp_err_t httpd_register_uri_handler(httpd_handle_t server, const httpd_uri_t *page);
esp_err_t httpd_resp_set_type(httpd_req_t *request, const char *type);
esp_err_t httpd_resp_send(httpd_req_t *request, const char *data, ssize_t length);

#ifdef __cplusplus
}
#endif

#endif /* ESP_IDF_STUB_H_ */
